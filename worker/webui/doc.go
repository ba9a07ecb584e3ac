// Package webui serves Temporal's Web UI inside this process, to be mounted by our API server behind its login.
//
// It owns how that UI is put together: its routes, its settings, the headers that keep it from speaking to anybody but
// us. It must not know who may log in, nor the payload keys: the UI's pages ask our codec endpoint for clear text.
//
// Invariants:
//
//   - No port is opened: another user of the machine can reach the UI through the login only.
//   - Calls to the engine carry the engine's credentials, which never reach the browser; what the browser sends as
//     authorization is dropped.
//   - The page loads from, and connects to, its own origin only (content security policy). News, feedback and the like
//     are off.
package webui
