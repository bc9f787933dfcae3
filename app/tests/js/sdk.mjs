// Drives the unmodified SDK `centrifuge` and prints one JSON object with what it saw.
// Usage: node sdk.mjs URL_OF_ONE_NODE URL_OF_ANOTHER API_KEY TOKEN
import { once } from 'node:events';
import { EventEmitter } from 'node:events';
import { Centrifuge } from 'centrifuge';
import WebSocket from 'ws';

const [one, two, key, token] = process.argv.slice(2);

const api = async (method, body) => {
  const response = await fetch(`${two}/api/${method}`, {
    method: 'POST',
    headers: { 'X-API-Key': key, 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  });
  return response.json();
};

const connect = (url, options = {}) =>
  new Centrifuge(`${url.replace('http', 'ws')}/connection/websocket`, {
    websocket: WebSocket,
    minReconnectDelay: 50,
    maxReconnectDelay: 200,
    ...options,
  });

const seen = { publications: [], subscribed: [], joins: [], errors: {} };
const bell = new EventEmitter();
const until = async (condition) => {
  while (!condition()) await once(bell, 'ring');
};

const reader = connect(one, { token });
const subscription = reader.newSubscription('js');
subscription.on('publication', (ctx) => {
  seen.publications.push([ctx.offset, ctx.data]);
  bell.emit('ring');
});
subscription.on('subscribed', (ctx) => {
  seen.subscribed.push([ctx.wasRecovering, ctx.recovered]);
  bell.emit('ring');
});
subscription.on('join', (ctx) => {
  seen.joins.push(ctx.info.user);
  bell.emit('ring');
});
subscription.subscribe();
reader.connect();
await subscription.ready(5000);

const writer = connect(two);
const theirs = writer.newSubscription('js');
theirs.subscribe();
writer.connect();
await theirs.ready(5000);
for (let n = 0; n < 5; n++) await theirs.publish({ n });
await until(() => seen.publications.length === 5);

seen.presence = Object.values((await subscription.presence()).clients).map((info) => info.user);
seen.stats = await subscription.presenceStats();
const page = await subscription.history({ limit: 2, since: { offset: 1, epoch: '' } });
seen.history = page.publications.map((publication) => publication.data.n);

await reader.rpc('method', {}).catch((error) => { seen.errors.rpc = error.code; });
await reader.publish('unknown:js', {}).catch((error) => { seen.errors.unknown = error.code; });

// Sent away, and while it is away five more are published.
await api('disconnect', { user: 'js', disconnect: { code: 3011, reason: 'force reconnect' } });
for (let n = 5; n < 10; n++) await api('publish', { channel: 'js', data: { n } });
await until(() => seen.subscribed.length === 2 && seen.publications.length === 10);

let ended;
subscription.on('unsubscribed', (ctx) => { ended = ctx.code; bell.emit('ring'); });
await api('unsubscribe', { user: 'js', channel: 'js' });
await until(() => ended !== undefined);
seen.unsubscribed = ended;

reader.disconnect();
writer.disconnect();
console.log(JSON.stringify(seen));
