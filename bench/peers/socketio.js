// Socket.IO with its Redis adapter, over WebSocket only.
import { createServer } from 'node:http'
import { createAdapter } from '@socket.io/redis-adapter'
import { createClient } from 'redis'
import { Server } from 'socket.io'

const [port, redis] = process.argv.slice(2)
const publisher = createClient({ url: `redis://127.0.0.1:${redis}` })
const subscriber = publisher.duplicate()
await Promise.all([publisher.connect(), subscriber.connect()])

const server = createServer()
const io = new Server(server, {
  transports: ['websocket'],
  perMessageDeflate: false,
  pingInterval: 300_000,
  adapter: createAdapter(publisher, subscriber),
})
io.on('connection', (socket) => {
  socket.on('join', async (room, answer) => {
    await socket.join(room)
    answer('joined')
  })
  socket.on('publish', (room, text, answer) => {
    io.to(room).emit('said', text)
    if (answer) answer('published')
  })
  socket.on('call', async (text, answer) => answer(text))
})
server.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 })
