// Package message is the grammar of HTTP/1.1 messages (RFC 9112), for both
// directions: the front end h1 reads requests by it and the upstream engine
// answers. There is one parser, and it is strict: what two programs may read
// differently has no reading here, so nothing can hide between the gateway and
// an application.
//
// A [Reader] stands on a connection and reads one [Head] after the other, and
// between them a [Body]. It holds a buffer only while there is something in it:
// an idle connection costs nothing. A head becomes one string, and its fields
// are parts of that.
package message
