// Package httpapi is the HTTP face of sky-server: the API under /api/v1, the login of browsers, and the mount points of
// the workflow Web UI and of the payload codec.
//
// It owns the routes, their OpenAPI 3.1 description (generated from the Go types of package api), the checks that every
// call passes (Host, Origin, token or session, version, size and shape of the body), the streams (server-sent events,
// framed logs) and the files by which clients find a server (server.json, server.pid, token).
//
// It must not know the workflow engine, nor any infra: what a call does is behind the interface Backend; reads come from
// the read model.
//
// Invariants:
//   - A mutating call is answered only once the request is durable. The same id with the same body is the same request,
//     with another body a conflict.
//   - Every route but health and login needs the instance token or a session made from it; nothing answers to a foreign
//     Host or Origin.
//   - A stream can be resumed from any point without losing or repeating a byte or an event. It ends with an explicit
//     last frame or event; one that ends without it was cut.
//   - Memory per stream is constant, whatever the length of the log.
//   - No secret is logged: neither bodies nor header values nor query strings are.
package httpapi
