// A WebSocket client of the ws library: node client.js URL PORT COOKIE. It
// echoes texts, binaries and pings of all sizes, and says "ok" and how it was
// closed; with a fifth argument it stays until the other side closes.
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { lookup } from 'node:dns'
import WebSocket from 'ws'

const [url, cookie, stay] = process.argv.slice(2)
const socket = new WebSocket(url, {
  headers: { cookie },
  maxPayload: 32 << 20,
  lookup: (host, options, done) => lookup('127.0.0.1', options, done),
})
socket.on('unexpected-response', (req, res) => { console.log(`refused ${res.statusCode}`); process.exit(3) })
socket.on('close', (code, reason) => { console.log(`closed ${code} ${reason}`); process.exit(0) })
await once(socket, 'open')
for (const size of [0, 1, 125, 126, 65535, 65536, 1 << 20, 8 << 20]) {
  const sent = randomBytes(size)
  socket.send(sent)
  const [got, isBinary] = await once(socket, 'message')
  if (!isBinary || !sent.equals(got)) throw new Error(`binary of ${size} bytes came back as ${got.length}`)
}
for (const text of ['', 'plain', '玉门 🐪', 'x'.repeat(100000)]) {
  socket.send(text)
  const [got, isBinary] = await once(socket, 'message')
  if (isBinary || got.toString() !== text) throw new Error(`text of ${text.length} came back as ${got}`)
}
socket.ping('are you there')
const [pong] = await once(socket, 'pong')
if (pong.toString() !== 'are you there') throw new Error(`pong ${pong}`)
console.log('ok')
if (!stay) socket.close(4001, 'thank you')
