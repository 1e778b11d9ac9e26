/**
 * A Pitaya client for browsers: one ES module, no dependencies, no build step.
 *
 *     import { connect } from './pitaya.js';
 *     const client = await connect('ws://localhost:3250', { user: { name: 'ada' } });
 *     client.on('onMessage', ({ name, content }) => console.log(name, content));
 *     await client.request('room.room.join', {});
 *     client.notify('room.room.message', { name: 'ada', content: 'hello' });
 *
 * It speaks packets over binary WebSocket messages, inflates what the server compressed, uses the server's route
 * dictionary in both directions, keeps the connection alive and notices when it is dead. Bodies are JSON when the
 * server says so, otherwise bytes. What one connection received is handled strictly in order.
 *
 * The codec (the `encode…` and `decode…` functions) is pure and usable on its own.
 */

/** Packet types. A packet is `type, length (3 bytes, big-endian), body`. */
export const PACKET = Object.freeze({ HANDSHAKE: 1, HANDSHAKE_ACK: 2, HEARTBEAT: 3, DATA: 4, KICK: 5 });
/** Message types. A message is the body of a data packet: `flags, id?, route?, payload`. */
export const MESSAGE = Object.freeze({ REQUEST: 0, NOTIFY: 1, RESPONSE: 2, PUSH: 3 });

const PACKET_BODY_BYTES_MAX = 0xffffff;
const FLAG_ROUTE_CODE = 0x01;
const FLAG_COMPRESSED = 0x10;
const FLAG_ERROR = 0x20;
const NO_BYTES = new Uint8Array();
const text = new TextDecoder();
const bytesOf = (string) => new TextEncoder().encode(string);

/** What a failed request or connection rejects with: the server's `code`, `message` and `metadata`, or a local code:
 * PIT-504 no answer in time, PIT-499 connection gone, PIT-400 broken data or refused handshake. */
export class PitayaError extends Error {
  constructor(code, message, metadata = {}) {
    super(message);
    Object.assign(this, { name: 'PitayaError', code, metadata });
  }
}
const broken = (what) => new PitayaError('PIT-400', what);

/** A whole packet. */
export function encodePacket(type, body = NO_BYTES) {
  if (body.length > PACKET_BODY_BYTES_MAX) throw broken(`packet of ${body.length} bytes is too large`);
  const out = new Uint8Array(4 + body.length);
  out.set([type, body.length >> 16, body.length >> 8, body.length]);
  out.set(body, 4);
  return out;
}

/** The packets of one WebSocket message, as `{ type, body }`. A packet never spans messages. */
export function decodePackets(bytes) {
  const packets = [];
  for (let at = 0; at < bytes.length || at === 0; ) {
    const [type, high, middle, low] = bytes.subarray(at, at + 4);
    if (low === undefined) throw broken('packet header is cut');
    if (type < 1 || type > 5) throw broken(`unknown packet type ${type}`);
    const end = at + 4 + ((high << 16) | (middle << 8) | low);
    if (end > bytes.length) throw broken('packet body is cut');
    packets.push({ type, body: bytes.subarray(at + 4, end) });
    at = end;
  }
  return packets;
}

/** The body of a data packet. `codes` maps routes to dictionary codes; a route in it is sent as its code. */
export function encodeMessage({ type, id = 0, route = '', payload = NO_BYTES }, codes = new Map()) {
  const head = [type << 1];
  if (type === MESSAGE.REQUEST || type === MESSAGE.RESPONSE) {
    for (; id > 127; id = Math.floor(id / 128)) head.push((id % 128) | 128);
    head.push(id);
  }
  if (type !== MESSAGE.RESPONSE) {
    const code = codes.get(route);
    if (code) {
      head[0] |= FLAG_ROUTE_CODE;
      head.push(code >> 8, code & 0xff);
    } else {
      const name = bytesOf(route);
      if (name.length > 255) throw broken('route is longer than 255 bytes');
      head.push(name.length, ...name);
    }
  }
  const out = new Uint8Array(head.length + payload.length);
  out.set(head);
  out.set(payload, head.length);
  return out;
}

/** The message in a data packet. `routes` maps dictionary codes to routes. The payload is not inflated yet. */
export function decodeMessage(bytes, routes = new Map()) {
  let at = 0;
  const next = () => {
    if (at >= bytes.length) throw broken('message is cut');
    return bytes[at++];
  };
  const flags = next();
  const type = (flags >> 1) & 7;
  if (type > 3) throw broken(`unknown message type ${type}`);
  let id = 0;
  if (type === MESSAGE.REQUEST || type === MESSAGE.RESPONSE) {
    for (let unit = 1, more = true; more; unit *= 128) {
      const byte = next();
      id += (byte & 127) * unit;
      more = byte > 127;
      if (id > Number.MAX_SAFE_INTEGER) throw broken('message id is too large');
    }
  }
  let route = '';
  if (type !== MESSAGE.RESPONSE) {
    if (flags & FLAG_ROUTE_CODE) {
      const code = (next() << 8) | next();
      if (!routes.has(code)) throw broken(`route code ${code} is not in the dictionary`);
      route = routes.get(code);
    } else {
      const end = next() + at;
      if (end > bytes.length) throw broken('route is cut');
      route = text.decode(bytes.subarray(at, end));
      at = end;
    }
  }
  const isCompressed = (flags & FLAG_COMPRESSED) !== 0;
  return { type, id, route, payload: bytes.subarray(at), isCompressed, isError: (flags & FLAG_ERROR) !== 0 };
}

/** Inflates a zlib stream. */
export async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The server's half of the handshake. A compressed one has no flag: JSON starts with a brace, zlib with 0x78. */
export async function decodeHandshake(body) {
  return JSON.parse(text.decode(body[0] === 0x78 ? await inflate(body) : body));
}

/**
 * Opens a connection; resolves with a {@link Client} after the handshake, rejects with a {@link PitayaError}.
 *
 * Options, all optional:
 * - `user`: an object for the server's handshake validators; `sys`: replaces fields of what the client says of itself.
 * - `onState(state, detail)`: `connecting`, `open`, `waiting` (`detail.delayMs` until the next try), `closed`.
 * - `onClose({ reason, message })`: over for good. `reason` is `closed` (by us), `kicked`, `refused` or `lost`.
 * - `onPush(route, body)`: a push that no `on` handler took.
 * - `reconnect`: true to come back after a lost connection (never after a kick or a refusal). A new connection is a new
 *   session; log in again on the state `open`.
 * - `requestTimeoutMs` (10 000), `connectTimeoutMs` (10 000).
 * - `WebSocket`: another implementation of the class, for tests.
 */
export async function connect(url, options = {}) {
  const client = new Client(url, options);
  await client.open();
  return client;
}

/** One logical connection. {@link connect} makes one and opens it; make it yourself to add handlers before. */
export class Client {
  /** `connecting`, `open`, `waiting` or `closed`. */
  state = 'closed';
  /** Seconds between heartbeats, as the server announced. */
  heartbeatSeconds = 0;
  /** The server's serializer, normally `json`. */
  serializer = 'json';
  /** Milliseconds that the last answered request took. */
  latencyMs;
  #url;
  #options;
  #socket;
  #timer;
  #retryTimer;
  #settle;
  #nextId = 1;
  #pending = new Map();
  #handlers = new Map();
  #codes = new Map();
  #routes = new Map();
  #ticksOfSilence = 0;
  #isQuiet = true;
  #attempts = 0;

  constructor(url, options) {
    this.#url = url;
    this.#options = { requestTimeoutMs: 10_000, connectTimeoutMs: 10_000, ...options };
  }

  /** Calls a handler; resolves with its answer, rejects with its error. */
  request(route, body, { timeoutMs = this.#options.requestTimeoutMs } = {}) {
    return new Promise((resolve, reject) => {
      const id = this.#nextId++;
      const started = performance.now();
      this.#sendMessage({ type: MESSAGE.REQUEST, id, route, payload: encodeBody(body) });
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(new PitayaError('PIT-504', `${route}: no answer within ${timeoutMs} ms`));
      }, timeoutMs);
      const finish = (settle) => (value) => {
        clearTimeout(timer);
        this.#pending.delete(id);
        settle(value);
      };
      const answered = (value) => {
        this.latencyMs = performance.now() - started;
        resolve(value);
      };
      this.#pending.set(id, { resolve: finish(answered), reject: finish(reject) });
    });
  }

  /** Calls a handler that gives no answer. Throws a {@link PitayaError} when not connected. */
  notify(route, body) {
    this.#sendMessage({ type: MESSAGE.NOTIFY, route, payload: encodeBody(body) });
  }

  /** Calls `handler(body)` for every push with this route; returns a function that stops it. */
  on(route, handler) {
    const handlers = this.#handlers.get(route) ?? new Set();
    this.#handlers.set(route, handlers.add(handler));
    return () => handlers.delete(handler);
  }

  /** Ends the connection, and any reconnecting. */
  close() {
    this.#finish('closed', 'closed by the application');
  }

  /** Opens the connection; {@link connect} does this. Resolves after the handshake. */
  open() {
    this.#setState('connecting');
    const opened = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    let socket;
    try {
      socket = new (this.#options.WebSocket ?? globalThis.WebSocket)(this.#url);
    } catch (error) {
      this.#finish('refused', error.message);
      return opened;
    }
    socket.binaryType = 'arraybuffer';
    this.#socket = socket;
    const { connectTimeoutMs } = this.#options;
    this.#timer = setTimeout(() => this.#lost(`no handshake within ${connectTimeoutMs} ms`), connectTimeoutMs);
    socket.onopen = () => {
      const sys = { platform: 'browser', libVersion: '1.0.0', clientBuildNumber: '1', clientVersion: '1.0.0' };
      const hello = { sys: { ...sys, ...this.#options.sys }, user: this.#options.user ?? {} };
      socket.send(encodePacket(PACKET.HANDSHAKE, bytesOf(JSON.stringify(hello))));
    };
    // Inflating is asynchronous; the chain keeps the order of arrival.
    let received = Promise.resolve();
    const isCurrent = () => this.#socket === socket;
    socket.onmessage = ({ data }) => {
      this.#ticksOfSilence = 0;
      received = received.then(() => isCurrent() && this.#receive(new Uint8Array(data))).catch((error) => {
        if (isCurrent()) this.#lost(error.message);
      });
    };
    // What arrived before the end is still handled first: a kick, for one, decides how the end is understood.
    socket.onclose = ({ code }) => received.then(() => isCurrent() && this.#lost(`connection closed (${code})`));
    return opened;
  }

  async #receive(bytes) {
    for (const { type, body } of decodePackets(bytes)) {
      if (this.state === 'closed') return;
      if (type === PACKET.DATA) await this.#receiveMessage(decodeMessage(body, this.#routes));
      else if (type === PACKET.HANDSHAKE) await this.#receiveHandshake(body);
      else if (type === PACKET.KICK) return this.#finish('kicked', text.decode(body) || 'kicked by the server');
      else if (type === PACKET.HEARTBEAT) {
        // Browsers hold back the timers of hidden tabs, but not messages: answering keeps such a tab alive.
        if (this.#isQuiet && this.state === 'open') this.#send(encodePacket(PACKET.HEARTBEAT));
        this.#isQuiet = true;
      }
    }
  }

  async #receiveHandshake(body) {
    const { code, sys = {} } = await decodeHandshake(body);
    if (code !== 200) return this.#finish('refused', `handshake refused with code ${code}`);
    this.#codes = new Map(Object.entries(sys.dict ?? {}));
    this.#routes = new Map([...this.#codes].map(([route, routeCode]) => [routeCode, route]));
    this.serializer = sys.serializer ?? 'json';
    this.heartbeatSeconds = sys.heartbeat ?? 0;
    clearTimeout(this.#timer);
    this.#ticksOfSilence = 0;
    this.#attempts = 0;
    this.#send(encodePacket(PACKET.HANDSHAKE_ACK));
    if (this.heartbeatSeconds > 0) this.#timer = setInterval(() => this.#tick(), this.heartbeatSeconds * 1000);
    this.#setState('open');
    this.#settle.resolve();
  }

  async #receiveMessage({ type, id, route, payload, isCompressed, isError }) {
    const body = this.#decodeBody(isCompressed ? await inflate(payload) : payload);
    if (type === MESSAGE.RESPONSE) {
      const { code = 'PIT-000', msg = String(body), metadata } = isError ? (body ?? {}) : {};
      if (isError) this.#pending.get(id)?.reject(new PitayaError(code, msg, metadata));
      else this.#pending.get(id)?.resolve(body);
      return;
    }
    const handlers = this.#handlers.get(route);
    if (!handlers?.size) return this.#call(() => this.#options.onPush?.(route, body));
    for (const handler of handlers) this.#call(() => handler(body));
  }

  /** Runs application code. Its exceptions are the application's: they are reported, and the connection goes on. */
  #call(callback) {
    try {
      callback();
    } catch (error) {
      (globalThis.reportError ?? console.error)(error);
    }
  }

  /** Every heartbeat interval. Counting ticks instead of time forgives a computer that was asleep. */
  #tick() {
    this.#ticksOfSilence += 1;
    if (this.#ticksOfSilence > 2) return this.#lost('the server is silent');
    this.#send(encodePacket(PACKET.HEARTBEAT));
  }

  #send(bytes) {
    this.#isQuiet = false;
    this.#socket.send(bytes);
  }

  #sendMessage(message) {
    if (this.state !== 'open') throw new PitayaError('PIT-499', `not connected (${this.state})`);
    this.#send(encodePacket(PACKET.DATA, encodeMessage(message, this.#codes)));
  }

  /** JSON, or text where it is none (some handlers answer with bare bytes); bytes for other serializers. */
  #decodeBody(payload) {
    if (this.serializer !== 'json') return payload;
    if (payload.length === 0) return null;
    const string = text.decode(payload);
    try {
      return JSON.parse(string);
    } catch {
      return string;
    }
  }

  #lost(message) {
    const wasOpen = this.state === 'open' || this.#attempts > 0;
    if (!this.#options.reconnect || !wasOpen) return this.#finish('lost', message);
    this.#dropSocket(message);
    // 1 s, doubling up to 30 s, each scattered by half so that a restarted server is not stormed.
    const delayMs = Math.min(1000 * 2 ** this.#attempts++, 30_000) * (0.5 + Math.random());
    this.#setState('waiting', { delayMs, message });
    this.#retryTimer = setTimeout(() => this.open().catch(() => {}), delayMs);
  }

  #finish(reason, message) {
    if (this.state === 'closed') return;
    this.#dropSocket(message);
    this.#setState('closed', { reason, message });
    this.#call(() => this.#options.onClose?.({ reason, message }));
  }

  #dropSocket(message) {
    const socket = this.#socket;
    this.#socket = undefined;
    clearTimeout(this.#timer); // Either the connect deadline or the heartbeat interval; this clears both kinds.
    clearTimeout(this.#retryTimer);
    socket?.close();
    const error = new PitayaError('PIT-499', message);
    this.#settle?.reject(error);
    for (const { reject } of [...this.#pending.values()]) reject(error);
  }

  #setState(state, detail = {}) {
    this.state = state;
    this.#call(() => this.#options.onState?.(state, detail));
  }
}

/** Bytes as they are, nothing as nothing, anything else as JSON. */
function encodeBody(body) {
  if (body === undefined) return NO_BYTES;
  return body instanceof Uint8Array ? body : bytesOf(JSON.stringify(body));
}
