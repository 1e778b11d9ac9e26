// Tests of pitaya.js: `node --test worker/web`. The codec against the byte vectors of the client protocol, section 18,
// and the client against a server that lives in the same process and has no sockets.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { deflateSync } from 'node:zlib';

// Loaded as text so that no package.json has to say which kind of module it is.
const source = await readFile(new URL('./pitaya.js', import.meta.url));
const pitaya = await import(`data:text/javascript;base64,${source.toString('base64')}`);
const { MESSAGE, PACKET, connect, decodeHandshake, decodeMessage, decodePackets, encodeMessage, encodePacket } = pitaya;

const hex = (string) => Uint8Array.from(Buffer.from(string.replaceAll(' ', ''), 'hex'));
const toHex = (bytes) => Buffer.from(bytes).toString('hex');
const utf8 = (bytes) => Buffer.from(bytes).toString();
const json = (value) => new Uint8Array(Buffer.from(JSON.stringify(value)));
/** Lets everything that is ready run, timers aside. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

test('packets match the vectors', () => {
  assert.equal(toHex(encodePacket(PACKET.HEARTBEAT)), '03000000');
  assert.equal(toHex(encodePacket(PACKET.HANDSHAKE_ACK)), '02000000');
  assert.equal(toHex(encodePacket(PACKET.HANDSHAKE, hex('01'))), '0100000101');
  assert.deepEqual(decodePackets(hex('0100000101 0100000101')).map(({ type, body }) => [type, toHex(body)]), [
    [1, '01'],
    [1, '01'],
  ]);
  const types = decodePackets(hex('03000000 03000000 02000000 05000000')).map(({ type }) => type);
  assert.deepEqual(types, [3, 3, 2, 5]);
  for (const bad of ['', '00000000', '06000000', 'ff000001', '0200', '0200000201', '020000010000']) {
    assert.throws(() => decodePackets(hex(bad)), { code: 'PIT-400' }, bad);
  }
});

test('a packet may be as large as its length field says, and no larger', () => {
  const largest = encodePacket(PACKET.DATA, new Uint8Array(0xffffff));
  assert.equal(toHex(largest.subarray(0, 4)), '04ffffff');
  assert.equal(decodePackets(largest)[0].body.length, 0xffffff);
  assert.throws(() => encodePacket(PACKET.DATA, new Uint8Array(0x1000000)), { code: 'PIT-400' });
});

test('messages decode to what the vectors say', () => {
  const noCodes = new Map();
  const a = new Map([[1, 'a']]);
  const d = new Map([[4, 'onMessage'], [260, 'room.room.join']]);
  const { REQUEST, NOTIFY, RESPONSE, PUSH } = MESSAGE;
  const vectors = [
    [noCodes, '00000161', REQUEST, 0, 'a', ''],
    [a, '01000001', REQUEST, 0, 'a', ''],
    [noCodes, '020161', NOTIFY, 0, 'a', ''],
    [a, '030001', NOTIFY, 0, 'a', ''],
    [noCodes, '060161', PUSH, 0, 'a', ''],
    [a, '070001', PUSH, 0, 'a', ''],
    [noCodes, '0400', RESPONSE, 0, '', ''],
    [noCodes, '040001', RESPONSE, 0, '', '\x01'],
    [noCodes, '048101', RESPONSE, 129, '', ''],
    [noCodes, '0001 0e 726f6f6d2e726f6f6d2e6a6f696e 7b7d', REQUEST, 1, 'room.room.join', '{}'],
    [noCodes, '00ac02 0e 726f6f6d2e726f6f6d2e6a6f696e 7b7d', REQUEST, 300, 'room.room.join', '{}'],
    [d, '010101047b7d', REQUEST, 1, 'room.room.join', '{}'],
    [d, '0301047b7d', NOTIFY, 0, 'room.room.join', '{}'],
    [noCodes, '06096f6e4d6573736167657b2278223a317d', PUSH, 0, 'onMessage', '{"x":1}'],
    [d, '0700047b2278223a317d', PUSH, 0, 'onMessage', '{"x":1}'],
    [noCodes, '04017b22636f6465223a3230307d', RESPONSE, 1, '', '{"code":200}'],
    [noCodes, '0081000161', REQUEST, 1, 'a', ''],
    [noCodes, 'c20161', NOTIFY, 0, 'a', ''],
    [noCodes, '00ffffffffffffff0f0161', REQUEST, Number.MAX_SAFE_INTEGER, 'a', ''],
  ];
  for (const [routes, bytes, type, id, route, payload] of vectors) {
    const message = decodeMessage(hex(bytes), routes);
    assert.deepEqual({ ...message, payload: utf8(message.payload) }, {
      type, id, route, payload, isCompressed: false, isError: false,
    }, bytes);
  }
  assert.equal(decodeMessage(hex('240001')).isError, true);
});

test('messages encode to the bytes of the vectors', () => {
  const d = new Map([['onMessage', 4], ['room.room.join', 260]]);
  const payload = hex('7b7d');
  const route = 'room.room.join';
  const encoded = (message, codes) => toHex(encodeMessage(message, codes));
  assert.equal(encoded({ type: MESSAGE.REQUEST, id: 300, route, payload }), '00ac020e726f6f6d2e726f6f6d2e6a6f696e7b7d');
  assert.equal(encoded({ type: MESSAGE.REQUEST, id: 1, route, payload }, d), '010101047b7d');
  assert.equal(encoded({ type: MESSAGE.NOTIFY, route, payload }, d), '0301047b7d');
  assert.equal(encoded({ type: MESSAGE.RESPONSE, id: 129 }), '048101');
  const longest = { type: MESSAGE.NOTIFY, route: 'r'.repeat(255) };
  assert.equal(decodeMessage(encodeMessage(longest)).route, longest.route);
  assert.throws(() => encodeMessage({ ...longest, route: 'r'.repeat(256) }), { code: 'PIT-400' });
});

test('ids survive at every length of their encoding', () => {
  for (const id of [0, 1, 127, 128, 129, 300, 16383, 16384, 2097152, 4294967295, 4294967296, Number.MAX_SAFE_INTEGER]) {
    assert.equal(decodeMessage(encodeMessage({ type: MESSAGE.RESPONSE, id })).id, id);
  }
  assert.equal(toHex(encodeMessage({ type: MESSAGE.RESPONSE, id: 4294967296 })), '048080808010');
});

test('broken messages are refused', () => {
  const d = new Map([[4, 'onMessage']]);
  for (const bad of ['', '00', '0801', '0e01', '0001', '00010261', '0601', '0080', '010103e7', '010104', `00${'80'.repeat(11)}`]) {
    assert.throws(() => decodeMessage(hex(bad), d), { code: 'PIT-400' }, bad);
  }
});

test('payloads and handshakes inflate', async () => {
  const push = decodeMessage(hex('16096f6e4d657373616765789c4aa40300040000ffff7a4725e5'));
  assert.equal(push.isCompressed, true);
  assert.equal(utf8(await pitaya.inflate(push.payload)), 'a'.repeat(100));
  const error = decodeMessage(hex('3400789c4aca49240601020000ffff33ff0f64'));
  assert.equal(utf8(await pitaya.inflate(error.payload)), 'bla'.repeat(13));
  await assert.rejects(pitaya.inflate(error.payload.subarray(0, 10)));

  const [{ body }] = decodePackets(hex(
    '01000082789c5c8e41aac3300c44ef326b13f293df8deed04328b6485d1a0b246ddae0bb97b49b92cd0cc383e1edc85a04348d63823f' +
    '1db4a3d41c47676d4d72a80dab848b7bd5563818f4977ea09fe094a0ed2adb22e6a0cb77b9f32aa0ff0453dd864f9c5fe79e7013b658' +
    '8403341f4662951ff52506c2ddb5a1f777000000ffffbe583e3b',
  ));
  const { code, sys } = await decodeHandshake(body);
  assert.deepEqual([code, sys.heartbeat, sys.dict['room.room.getsessiondata']], [200, 30, 3]);
  assert.equal((await decodeHandshake(json({ code: 200, sys: {} }))).code, 200);
});

/** A WebSocket whose other end is `server`, an object with `received(type, body, socket)`. */
function socketTo(server) {
  return class FakeSocket {
    constructor(url) {
      if (!/^wss?:/.test(url)) throw new SyntaxError('not a WebSocket address');
      this.server = server;
      server.sockets = [...(server.sockets ?? []), this];
      if (!server.isSilent) setImmediate(() => this.onopen?.());
    }
    send(bytes) {
      for (const { type, body } of decodePackets(bytes)) server.received(type, body, this);
    }
    push(...packets) {
      const bytes = Buffer.concat(packets);
      this.onmessage?.({ data: bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length) });
    }
    close(code = 1005) {
      setImmediate(() => this.onclose?.({ code }));
    }
  };
}

/** A server that accepts everybody and echoes requests; `log` is what it got. */
function echoServer({ sys = {}, code = 200, codes = new Map() } = {}) {
  const log = [];
  const routes = new Map([...codes].map(([route, number]) => [number, route]));
  const handshake = { code, sys: { dict: Object.fromEntries(codes), heartbeat: 30, serializer: 'json', ...sys } };
  return {
    log,
    received(type, body, socket) {
      if (type === PACKET.HANDSHAKE) {
        log.push(JSON.parse(utf8(body)));
        socket.push(encodePacket(PACKET.HANDSHAKE, new Uint8Array(deflateSync(json(handshake)))));
      } else if (type === PACKET.DATA) {
        const message = decodeMessage(body, routes);
        log.push([message.type, message.id, message.route, utf8(message.payload)]);
        const { id, payload } = message;
        if (message.type === MESSAGE.REQUEST && message.route !== 'no.answer') {
          socket.push(encodePacket(PACKET.DATA, encodeMessage({ type: MESSAGE.RESPONSE, id, payload })));
        }
      } else log.push(type);
    },
  };
}

const fakeUrl = 'ws://fake';

test('a client shakes hands, asks, tells and is told', async () => {
  const server = echoServer();
  const client = await connect(fakeUrl, { user: { age: 30 }, WebSocket: socketTo(server) });
  assert.equal(client.state, 'open');
  assert.deepEqual(server.log[0].user, { age: 30 });
  assert.equal(typeof server.log[0].sys.platform, 'string');
  assert.deepEqual(await client.request('room.room.join', { x: 1 }), { x: 1 });
  assert.equal(await client.request('room.room.join'), null);
  assert.equal(await client.request('room.room.join', new Uint8Array(Buffer.from('success'))), 'success');
  assert.ok(client.latencyMs >= 0);
  client.notify('room.room.message', { content: 'ü' });
  assert.deepEqual(server.log.slice(1), [
    PACKET.HANDSHAKE_ACK,
    [MESSAGE.REQUEST, 1, 'room.room.join', '{"x":1}'],
    [MESSAGE.REQUEST, 2, 'room.room.join', ''],
    [MESSAGE.REQUEST, 3, 'room.room.join', 'success'],
    [MESSAGE.NOTIFY, 0, 'room.room.message', '{"content":"ü"}'],
  ]);

  const got = [];
  const stop = client.on('onMessage', (body) => got.push(body));
  const push = (body) => encodePacket(PACKET.DATA, encodeMessage({ type: MESSAGE.PUSH, route: 'onMessage', payload: json(body) }));
  server.sockets[0].push(push(1), push(2));
  await settle();
  stop();
  server.sockets[0].push(push(3));
  await settle();
  assert.deepEqual(got, [1, 2]);
  client.close();
  assert.equal(client.state, 'closed');
});

test('compressed pushes keep their place in the order', async () => {
  const server = echoServer();
  const client = await connect(fakeUrl, { WebSocket: socketTo(server) });
  const got = [];
  const done = new Promise((resolve) => client.on('p', (body) => got.push(body) === 3 && resolve()));
  const push = (payload, flags) => {
    const message = encodeMessage({ type: MESSAGE.PUSH, route: 'p', payload });
    message[0] |= flags;
    return encodePacket(PACKET.DATA, message);
  };
  const long = 'x'.repeat(1000);
  server.sockets[0].push(push(new Uint8Array(deflateSync(json(long))), 0x10));
  server.sockets[0].push(push(json('second'), 0));
  server.sockets[0].push(push(json('third'), 0));
  await done;
  assert.deepEqual(got, [long, 'second', 'third']);
  client.close();
});

test('the dictionary is used in both directions', async () => {
  const server = echoServer({ codes: new Map([['room.room.join', 260], ['onMessage', 4]]) });
  const client = await connect(fakeUrl, { WebSocket: socketTo(server) });
  const sent = [];
  const { send } = server.sockets[0];
  server.sockets[0].send = function (bytes) {
    sent.push(toHex(bytes));
    send.call(this, bytes);
  };
  await client.request('room.room.join', {});
  assert.deepEqual(sent, ['04000006010101047b7d']);
  const got = new Promise((resolve) => client.on('onMessage', resolve));
  server.sockets[0].push(encodePacket(PACKET.DATA, hex('0700047b2278223a317d')));
  assert.deepEqual(await got, { x: 1 });
  client.close();
});

test('an error answer rejects with its code, message and metadata', async () => {
  const server = echoServer();
  const client = await connect(fakeUrl, { WebSocket: socketTo(server) });
  const refused = client.request('no.answer', {});
  server.sockets[0].push(hex('0400003c24017b22636f6465223a225049542d343034222c226d7367223a227069746179612f68616e646c65723a20612e622e63206e6f7420666f756e64227d'));
  await assert.rejects(refused, { code: 'PIT-404', message: 'pitaya/handler: a.b.c not found', metadata: {} });
  const withMetadata = client.request('no.answer', {});
  const message = encodeMessage({ type: MESSAGE.RESPONSE, id: 2, payload: json({ code: 'X', msg: 'm', metadata: { k: 'v' } }) });
  message[0] |= 0x20;
  server.sockets[0].push(encodePacket(PACKET.DATA, message));
  await assert.rejects(withMetadata, { code: 'X', message: 'm', metadata: { k: 'v' } });
  client.close();
});

test('a request without an answer fails when its time is up, or with the connection', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  const server = echoServer();
  const client = await connect(fakeUrl, { WebSocket: socketTo(server) });
  const late = client.request('no.answer', {}, { timeoutMs: 50 });
  const orphan = client.request('no.answer', {});
  t.mock.timers.tick(50);
  await assert.rejects(late, { code: 'PIT-504' });
  server.sockets[0].close(1006);
  await assert.rejects(orphan, { code: 'PIT-499' });
  await assert.rejects(client.request('room.room.join', {}), { code: 'PIT-499' });
  assert.throws(() => client.notify('room.room.message', {}), { code: 'PIT-499' });
});

test('heartbeats go out every interval and three silent intervals end it', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  const server = echoServer({ sys: { heartbeat: 2 } });
  let closed;
  const client = await connect(fakeUrl, { WebSocket: socketTo(server), onClose: (detail) => (closed = detail) });
  server.log.length = 0;
  t.mock.timers.tick(4000);
  assert.deepEqual(server.log, [PACKET.HEARTBEAT, PACKET.HEARTBEAT]);
  server.sockets[0].push(encodePacket(PACKET.HEARTBEAT));
  t.mock.timers.tick(4000);
  assert.equal(client.state, 'open');
  t.mock.timers.tick(2000);
  assert.deepEqual([client.state, closed.reason], ['closed', 'lost']);
});

test('a quiet client answers heartbeats, so that a hidden tab stays alive', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  const server = echoServer();
  const client = await connect(fakeUrl, { WebSocket: socketTo(server) });
  server.log.length = 0;
  for (let beat = 0; beat < 3; beat += 1) {
    server.sockets[0].push(encodePacket(PACKET.HEARTBEAT));
    await settle();
  }
  assert.deepEqual(server.log, [PACKET.HEARTBEAT, PACKET.HEARTBEAT]);
  client.close();
});

test('a kick is final even with reconnecting', async () => {
  const server = echoServer();
  const ended = new Promise((resolve) => {
    connect(fakeUrl, { WebSocket: socketTo(server), reconnect: true, onClose: resolve }).then(() => {
      server.sockets[0].push(encodePacket(PACKET.KICK));
      server.sockets[0].close(1000);
    });
  });
  assert.equal((await ended).reason, 'kicked');
  await settle();
  assert.equal(server.sockets.length, 1);
});

test('a refused handshake and a bad address reject', async () => {
  const refusing = echoServer({ code: 400 });
  await assert.rejects(connect(fakeUrl, { WebSocket: socketTo(refusing), reconnect: true }), { code: 'PIT-499' });
  await assert.rejects(connect('nonsense', { WebSocket: socketTo(echoServer()) }), { code: 'PIT-499' });
});

test('a server that never shakes hands is given up', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  const attempt = connect(fakeUrl, { WebSocket: socketTo({ isSilent: true, received() {} }), connectTimeoutMs: 100 });
  t.mock.timers.tick(100);
  await assert.rejects(attempt, { code: 'PIT-499', message: 'no handshake within 100 ms' });
});

test('a lost connection comes back as a new session when asked to', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  const server = echoServer();
  const states = [];
  const client = await connect(fakeUrl, {
    WebSocket: socketTo(server),
    reconnect: true,
    onState: (state) => states.push(state),
  });
  const orphan = client.request('no.answer', {});
  server.sockets[0].close(1006);
  await assert.rejects(orphan, { code: 'PIT-499' });
  assert.equal(client.state, 'waiting');
  t.mock.timers.tick(1500);
  while (client.state !== 'open') await settle();
  assert.deepEqual(await client.request('a.b', 1), 1);
  assert.deepEqual(states, ['connecting', 'open', 'waiting', 'connecting', 'open']);
  client.close();
  assert.equal(states.at(-1), 'closed');
});

test('garbage from the server ends the connection', async () => {
  for (const garbage of ['ffffffff', '04000000', '0400000207ff', '0100000101']) {
    const server = echoServer();
    const closed = new Promise((resolve) => {
      connect(fakeUrl, { WebSocket: socketTo(server), onClose: resolve }).then(() => server.sockets[0].push(hex(garbage)));
    });
    assert.equal((await closed).reason, 'lost', garbage);
  }
});

test('a handler that throws does not end the connection', async (t) => {
  const reported = t.mock.method(console, 'error', () => {});
  const server = echoServer();
  const client = await connect(fakeUrl, { WebSocket: socketTo(server) });
  client.on('p', () => {
    throw new Error('mine');
  });
  server.sockets[0].push(encodePacket(PACKET.DATA, encodeMessage({ type: MESSAGE.PUSH, route: 'p' })));
  await settle();
  assert.equal(reported.mock.callCount(), 1);
  assert.equal(await client.request('a.b', 1), 1);
  client.close();
});
