// Package filesync moves folders by content: it describes a folder as a manifest, carries the files that the other
// side lacks as a stream of blobs, and brings a folder elsewhere to the manifest's state.
//
// The command line scans and sends, the server keeps, the agent applies; all three use this package, so it links
// nothing but the standard library and zstd, and knows neither HTTP, nor the server, nor the agent.
//
// Invariants:
//   - A manifest from outside is never trusted: Decode refuses paths that climb, repeat, or lead through a link.
//   - A blob is checked against its hash wherever it is read; a stream that is cut or altered leaves nothing half done.
//   - Apply writes below its target only, whatever links stand there or appear meanwhile, and replaces a file by
//     renaming a finished one over it. Only where nothing was, files come under their own names at once: a sync that broke off
//     there leaves a part of the tree, which the next one completes.
//   - What changed while it was read is reported, never sent as a mixture.
//
// A source that does not hold still is sent as rsync would send it, if the caller wants that: of a file that grows what it
// held when it was read, of one that is rewritten all the time a copy made while reading, without a file that vanished;
// each with a warning. A folder of which much vanishes is an error, since a mirror of it would delete as much.
//
// The modification time of files is part of a manifest, and so of its id: tools like make depend on it, and an id has to
// name everything that Apply puts in place, or two different states would share one. A touched but unchanged file makes
// a new id and moves no blob. Folders and links carry no time, since building in a folder alters it without changing
// anything that is sent; an unchanged tree therefore keeps its id.
package filesync
