// Package apiserver holds `sky api`: the commands on the server itself and on its requests.
package apiserver
