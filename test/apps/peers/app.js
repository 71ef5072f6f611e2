// An application as teams write them: Node's HTTP server with the WebSocket
// library that most of them use. It listens on the port of its first argument.
import { createServer } from 'node:http'
import { createHash } from 'node:crypto'
import { WebSocketServer } from 'ws'

const page = `<!doctype html><meta charset="utf-8"><title>loading</title><p id="user"></p>
<script type="module">
const next = (target, name) => new Promise((yes, no) => {
  target.addEventListener(name, yes, { once: true })
  target.addEventListener('error', () => no(new Error(name)), { once: true })
})
const done = {}
try {
  done.page = performance.getEntriesByType('navigation')[0].nextHopProtocol
  done.user = await (await fetch('/whoami')).text()
  const body = new Uint8Array(300000).map((_, i) => i * 7)
  done.upload = await (await fetch('/digest', { method: 'POST', body })).text()
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', body))
  done.expected = Array.from(hash, b => b.toString(16).padStart(2, '0')).join('')
  const events = new EventSource('/events')
  done.events = []
  while (done.events.length < 3) done.events.push((await next(events, 'message')).data)
  events.close()
  const socket = new WebSocket('wss://' + location.host + '/ws')
  await next(socket, 'open')
  socket.send('through the gate 玉门')
  done.echo = (await next(socket, 'message')).data
  socket.close(4000, 'enough')
  done.code = (await next(socket, 'close')).code
} catch (e) { done.error = String(e) }
window.outcome = JSON.stringify(done)
document.title = 'done'
</script>`

const server = createServer((req, res) => {
  const path = new URL(req.url, 'http://app').pathname
  if (path === '/whoami') {
    res.end(req.headers['x-yumen-user'] ?? 'nobody')
  } else if (path === '/digest') {
    const hash = createHash('sha256')
    req.on('data', chunk => hash.update(chunk)).on('end', () => res.end(hash.digest('hex')))
  } else if (path === '/events') {
    res.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' })
    let n = 0
    const timer = setInterval(() => res.write(`data: event ${n++}\n\n`), 20)
    res.on('close', () => clearInterval(timer))
  } else {
    res.writeHead(200, { 'content-type': 'text/html; charset=utf-8' }).end(page)
  }
})

new WebSocketServer({ server, path: '/ws', maxPayload: 32 << 20 }).on('connection', socket => {
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }))
  socket.on('close', (code, reason) => console.log(`closed ${code} ${reason}`))
})

server.listen(Number(process.argv[2]), '127.0.0.1')
