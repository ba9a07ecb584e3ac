// Package objects moves files between a node and an object store, through URLs that carry their own permission.
//
// It knows HTTP and bytes. It must not know whose bytes they are, nor credentials: it has none. An error never holds a URL, since
// whoever reads one may use it.
package objects
