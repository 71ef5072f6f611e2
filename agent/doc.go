// Package agent is Yumen's reference agent: an unprivileged program that gives
// the person who runs it a way to the applications that were granted, and to
// nothing else.
//
// An agent has three sides.
//
//   - Local faces (faces.go): a SOCKS5 proxy, an HTTP CONNECT proxy and port
//     forwards, on loopback addresses only, for the uid that runs the agent only.
//   - The session (session.go): signs in at the control center by Table 16, keeps
//     the identity fresh, fetches the resource list (Tables 19 and 20), reports
//     status (Table 21) and alerts (Table 22): clause 9 of CSA GCR 002-2025.
//   - The tunnel (tunnels.go): one to a gateway of the list, over which every flow
//     asks by Table 12 and the identity is renewed by Table 14: clause 8.
//
// What is not in the resource list is refused, never sent by another way: the
// agent edits no route, no resolver and no firewall, so all other traffic of
// the machine stays as it is. No password is stored; the token stays in memory.
//
// Start at [New] and [Agent.Run]; resources.go decides where a connection goes.
package agent
