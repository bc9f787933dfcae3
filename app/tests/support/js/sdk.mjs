// The scenarios of test_centrifuge_sdks.py with the unmodified SDK `centrifuge`; sdk.py has the same.
// Usage: node sdk.mjs SCENARIO CHANNEL URL API_URL API_KEY SECRET
// Prints one JSON object a line: {step} asks the test to do something, {seen} is the result.
import { createHmac } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { Centrifuge } from 'centrifuge';
import WebSocket from 'ws';

const [scenario, channel, url, apiUrl, key, secret] = process.argv.slice(2);

const print = (object) => console.log(JSON.stringify(object));

const api = async (method, body) => {
  const response = await fetch(`${apiUrl}/api/${method}`, {
    method: 'POST',
    headers: { 'X-API-Key': key, 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  });
  const answer = await response.json();
  if (!answer.result) throw new Error(`${method}: ${JSON.stringify(answer)}`);
  return answer.result;
};

const token = (claims) => {
  const part = (object) => Buffer.from(JSON.stringify(object)).toString('base64url');
  const text = `${part({ alg: 'HS256', typ: 'JWT' })}.${part(claims)}`;
  return `${text}.${createHmac('sha256', secret).update(text).digest('base64url')}`;
};
const inSeconds = (seconds) => Math.floor(Date.now() / 1000) + seconds;

const client = (options) =>
  new Centrifuge(`${url.replace('http', 'ws')}/connection/websocket`, {
    websocket: WebSocket,
    minReconnectDelay: 50,
    maxReconnectDelay: 200,
    ...options,
  });

const bell = new EventEmitter();
const note = (emitter, event, list, what) =>
  emitter.on(event, (ctx) => {
    list.push(what(ctx));
    bell.emit('ring');
  });
const until = async (condition) => {
  while (!condition()) await once(bell, 'ring');
};
const recovery = (ctx) => [ctx.wasRecovering, ctx.recovered];
const users = async (subscription) =>
  Object.values((await subscription.presence()).clients).map((info) => info.user).sort();

const scenarios = {
  async features() {
    const publications = [], joins = [], leaves = [], errors = {};
    const ended = [], server = [], disconnected = [];
    const ann = client({ token: token({ sub: 'ann' }) });
    note(ann, 'subscribed', server, (ctx) => ['subscribed', ctx.channel]);
    note(ann, 'publication', server, (ctx) => ['publication', ctx.channel, ctx.data]);
    note(ann, 'unsubscribed', server, (ctx) => ['unsubscribed', ctx.channel]);
    note(ann, 'disconnected', disconnected, (ctx) => ctx.code);
    const room = ann.newSubscription(channel);
    note(room, 'publication', publications, (ctx) => [ctx.offset, ctx.data, ctx.info?.user]);
    note(room, 'join', joins, (ctx) => ctx.info.user);
    note(room, 'leave', leaves, (ctx) => ctx.info.user);
    note(room, 'unsubscribed', ended, (ctx) => ctx.code);
    room.subscribe();
    ann.connect();
    await room.ready(5000);
    await until(() => joins.length === 1);

    const bob = client({ token: token({ sub: 'bob' }) });
    const bobs = bob.newSubscription(channel);
    bobs.subscribe();
    bob.connect();
    await bobs.ready(5000);
    await until(() => joins.length === 2);
    for (let n = 0; n < 5; n++) await bobs.publish({ n });
    await until(() => publications.length === 5);

    const present = await users(room);
    const { numClients, numUsers } = await room.presenceStats();
    const page = async (options) =>
      (await room.history(options)).publications.map((publication) => publication.data.n);
    const { epoch, offset } = await room.history({ limit: 0 });
    const pages = [
      await page({ limit: 2 }),
      await page({ limit: 2, since: { offset: 2, epoch } }),
      await page({ limit: 2, reverse: true }),
      await page({ limit: 2, since: { offset: 4, epoch }, reverse: true }),
    ];
    await ann.rpc('method', {}).catch((error) => { errors.rpc = error.code; });
    await ann.publish('unknown:room', {}).catch((error) => { errors.unknown = error.code; });
    bobs.unsubscribe();
    await until(() => leaves.length === 1);

    await api('unsubscribe', { user: 'ann', channel });
    await until(() => ended.length === 1);
    room.subscribe();
    await room.ready(5000);
    await api('publish', { channel, data: 'again' });
    await until(() => publications.length === 6);

    await api('subscribe', { user: 'ann', channel: 'offers' });
    await until(() => server.length === 1);
    await api('publish', { channel: 'offers', data: 'cheap' });
    await until(() => server.length === 2);
    await api('unsubscribe', { user: 'ann', channel: 'offers' });
    await until(() => server.length === 3);
    await api('disconnect', { user: 'ann' });
    await until(() => disconnected.length === 1);
    bob.disconnect();
    return {
      publications, joins, leaves, present, stats: [numClients, numUsers], offset, pages, errors,
      ended, server, disconnected,
    };
  },

  async refresh() {
    const tokens = [], subTokens = [], connected = [], subscribed = [], publications = [];
    const ann = client({
      getToken: async () => {
        tokens.push(token({ sub: 'ann', exp: inSeconds(2) }));
        bell.emit('ring');
        return tokens.at(-1);
      },
    });
    note(ann, 'connected', connected, (ctx) => ctx.client);
    const subscription = ann.newSubscription(`$${channel}`, {
      getToken: async (ctx) => {
        subTokens.push(token({ sub: 'ann', channel: ctx.channel, exp: inSeconds(2) }));
        bell.emit('ring');
        return subTokens.at(-1);
      },
    });
    note(subscription, 'subscribed', subscribed, recovery);
    note(subscription, 'publication', publications, (ctx) => ctx.data);
    subscription.subscribe();
    ann.connect();
    await subscription.ready(5000);
    await until(() => tokens.length >= 6 && subTokens.length >= 6);
    await api('publish', { channel: `$${channel}`, data: 'still here' });
    await until(() => publications.length === 1);
    ann.disconnect();
    return { connections: connected.length, subscriptions: subscribed.length, publications };
  },

  async killed() {
    let tokens = 0;
    const connected = [], subscribed = [], publications = [];
    const ann = client({
      getToken: async () => {
        tokens += 1;
        return token({ sub: 'ann', exp: inSeconds(3600) });
      },
    });
    note(ann, 'connected', connected, (ctx) => ctx.client);
    const news = ann.newSubscription(channel);
    note(news, 'subscribed', subscribed, recovery);
    note(news, 'publication', publications, (ctx) => ctx.data);
    news.subscribe();
    ann.connect();
    await news.ready(5000);
    for (let n = 0; n < 5; n++) await news.publish(n);
    await until(() => publications.length === 5);
    print({ step: ['kill', connected[0], channel] });
    await until(() => publications.length === 10 && subscribed.length === 2);
    await news.publish(10);
    await until(() => publications.length === 11);
    const present = [...new Set(await users(news))];
    ann.disconnect();
    return { publications, subscribed, tokens, present };
  },

  async away() {
    return {
      expired: await away(`brief:${channel}`, false),
      wiped: await away(channel, true),
    };
  },
};

async function away(name, wiped) {
  const subscribed = [], publications = [];
  const ann = client({ token: token({ sub: 'ann' }) });
  const subscription = ann.newSubscription(name);
  note(subscription, 'subscribed', subscribed, recovery);
  note(subscription, 'publication', publications, (ctx) => ctx.data);
  subscription.subscribe();
  ann.connect();
  await subscription.ready(5000);
  await api('publish', { channel: name, data: 'heard' });
  await until(() => publications.length === 1);
  ann.disconnect();
  const history = () => api('history', { channel: name, limit: -1 });
  const { epoch } = await history();
  if (wiped) {
    print({ step: ['wipe'] });
    while ((await history()).epoch === epoch);
  }
  await api('publish', { channel: name, data: 'missed' });
  if (!wiped) while ((await history()).publications.length);
  ann.connect();
  await until(() => subscribed.length === 2);
  await api('publish', { channel: name, data: 'live' });
  await until(() => publications.length === 2);
  ann.disconnect();
  return { subscribed, publications };
}

print({ seen: await scenarios[scenario]() });
