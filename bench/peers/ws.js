// Node's `ws`: sends the text to each client or, with "framed", a frame that is built once.
import { createServer } from 'node:http'
import { WebSocketServer, Sender } from 'ws'

const [port, , framed] = process.argv.slice(2)
const rooms = new Map()
const server = createServer()
const websockets = new WebSocketServer({ server, perMessageDeflate: false })

websockets.on('connection', (client, request) => {
  const room = request.url.split('/').pop()
  if (!rooms.has(room)) rooms.set(room, new Set())
  const clients = rooms.get(room)
  clients.add(client)
  client.on('close', () => clients.delete(client))
  client.on('error', () => {})
  client.on('message', (data) => {
    if (framed) {
      const frame = Buffer.concat(Sender.frame(data, { fin: true, opcode: 1, mask: false, readOnly: false, rsv1: false }))
      for (const other of clients) other._socket.write(frame)
    } else {
      for (const other of clients) other.send(data, { binary: false })
    }
  })
})
server.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 })
