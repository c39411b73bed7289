// Package statuspage shows replicas to people and to monitors. [Handler] serves a page that
// a program mounts in its own mux:
//
//	mux.Handle("/replica/", statuspage.Handler([]*replicator.Replicator{r}))
//
// Below the path at which it is mounted, with or without http.StripPrefix, there are:
//
//   - the page itself, at a path that ends in a slash. It works without a network beyond
//     the program, and is updated twice a second over server-sent events.
//   - status.json, a [Report]: the Status of each replica. Its field names are a contract,
//     which docs/STATUS.md describes.
//   - readyz, which answers 200 if the replicas are ready for use, and otherwise 503 with
//     what is missing. See [WithReadyPeers].
//
// The handler is read-only, and shows neither keys nor values. [WithData] and
// [WithActions] change that. It does not ask who the reader is: protect it like any other
// page of operations.
package statuspage
