// Package infra holds the commands on what tasks can run on: `sky check` and `sky gpus`.
package infra
