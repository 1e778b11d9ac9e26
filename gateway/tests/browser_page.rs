//! The demo page in a real browser, against a server of a hundred lines that speaks with the shared codecs. It shows
//! that page, browser client and codecs fit together, compression and route codes included, with no gateway in play.

#[path = "support/chromium.rs"]
mod chromium;
#[path = "support/demo_page.rs"]
mod demo_page;
#[path = "../../shared/tests/servers/guarded.rs"]
mod guarded;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use serde_json::{Value, json};
use shared::compression::Deflater;
use shared::dictionary::Dictionary;
use shared::error::{Error, Serializer};
use shared::handshake::{HandshakeOptions, HandshakeResponses, decode_request};
use shared::message::{self, Head, MessageType};
use shared::packet::{self, PacketType};
use shared::websocket::{
    Decoder, FrameLimits, Incoming, Opcode, Role, Upgrade, UpgradeLimits, accept, frame_head,
    page_response,
};

/// One room for everybody; writing happens under its lock, so packets never mix.
#[derive(Default)]
struct Room {
    dictionary: Dictionary,
    members: Vec<(String, TcpStream)>,
    connections: usize,
}

type SharedRoom = Arc<Mutex<Room>>;

fn serve() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut room = Room::default();
    // Enough routes to make the handshake response worth compressing, a push among them.
    room.dictionary.insert_all([
        ("onMessage", 1),
        ("room.room.join", 2),
        ("room.room.message", 300),
        ("room.room.getsessiondata", 4),
        ("room.room.setsessiondata", 5),
    ])?;
    let room = Arc::new(Mutex::new(room));
    // Ends with the test's process; it owns nothing outside it.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let room = Arc::clone(&room);
            std::thread::spawn(move || serve_connection(stream, &room));
        }
    });
    Ok(address)
}

fn serve_connection(mut stream: TcpStream, room: &SharedRoom) -> Result<()> {
    let limits = UpgradeLimits { serves_pages: true, ..UpgradeLimits::default() };
    let mut pending = Vec::new();
    stream.set_nodelay(true)?;
    loop {
        match accept(&pending, &limits) {
            Upgrade::Incomplete => {
                if receive(&mut stream, &mut pending)? == 0 {
                    return Ok(());
                }
            }
            Upgrade::PlainGet { path, .. } => return Ok(stream.write_all(&page(&path))?),
            Upgrade::Refused { response } => return Ok(stream.write_all(&response)?),
            Upgrade::Accepted { consumed, response, .. } => {
                stream.write_all(&response)?;
                pending.drain(..consumed);
                break;
            }
        }
    }
    let uid = {
        let mut room = room.lock().expect("no thread panics with the lock");
        room.connections += 1;
        room.connections.to_string()
    };
    let outcome = serve_session(&mut stream, pending, &uid, room);
    room.lock().expect("no thread panics with the lock").members.retain(|(other, _)| *other != uid);
    outcome
}

fn receive(stream: &mut TcpStream, pending: &mut Vec<u8>) -> Result<usize> {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer)?;
    pending.extend_from_slice(&buffer[..count]);
    Ok(count)
}

fn page(path: &str) -> Vec<u8> {
    match path {
        "/" => page_response(
            200,
            "text/html; charset=utf-8",
            include_bytes!("../../worker/web/index.html"),
        ),
        "/pitaya.js" => page_response(
            200,
            "text/javascript; charset=utf-8",
            include_bytes!("../../worker/web/pitaya.js"),
        ),
        _ => page_response(404, "text/plain", b"not here\n"),
    }
}

fn serve_session(
    stream: &mut TcpStream,
    mut pending: Vec<u8>,
    uid: &str,
    room: &SharedRoom,
) -> Result<()> {
    let limits = FrameLimits::new(65_540);
    let mut decoder = Decoder::new(Role::Server);
    let mut data = json!({});
    loop {
        let taken = match decoder.decode(&mut pending, &limits)? {
            None => {
                if receive(stream, &mut pending)? == 0 {
                    return Ok(());
                }
                continue;
            }
            Some((Incoming::Close { reply, .. }, _)) => {
                return Ok(stream.write_all(reply.as_bytes())?);
            }
            Some((Incoming::Message(bytes), taken)) => {
                let mut room = room.lock().expect("no thread panics with the lock");
                handle_packet(bytes, stream, uid, &mut data, &mut room)?;
                taken
            }
            Some((_, taken)) => taken,
        };
        pending.drain(..taken);
    }
}

fn handle_packet(
    bytes: &[u8],
    stream: &mut TcpStream,
    uid: &str,
    data: &mut Value,
    room: &mut Room,
) -> Result<()> {
    let (packet, _) = packet::decode(bytes, 65_536)?.expect("one packet a message");
    match packet.kind {
        PacketType::Handshake => {
            decode_request(packet.body, 4096)?;
            let dictionary = &room.dictionary;
            let serializer = Serializer::Json.name();
            let options =
                HandshakeOptions { heartbeat_s: 15, dictionary, serializer, compression: true };
            send(stream, &HandshakeResponses::new(&options)?.accepted)
        }
        PacketType::Data => {
            let dictionary = room.dictionary.clone();
            let message = message::decode(packet.body, &dictionary)?;
            let route = String::from_utf8_lossy(message.route);
            let body: Value = serde_json::from_slice(message.payload).unwrap_or_default();
            let answer = handle_message(&route, &body, stream, uid, data, room)?;
            if message.kind == MessageType::Request {
                respond(stream, message.id, answer, &dictionary)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The demo's handlers; the answer's bytes, or the error for an unknown route.
fn handle_message(
    route: &str,
    body: &Value,
    stream: &mut TcpStream,
    uid: &str,
    data: &mut Value,
    room: &mut Room,
) -> Result<Result<Vec<u8>, Error>> {
    let answer = match route {
        "room.room.join" => {
            let uids: Vec<_> = room.members.iter().map(|(uid, _)| uid).collect();
            push(stream, "onMembers", &json!({ "members": uids }), &room.dictionary)?;
            broadcast(room, "onNewUser", &json!({ "content": format!("New user: {uid}") }))?;
            room.members.push((uid.to_owned(), stream.try_clone()?));
            json!({ "code": 0, "result": "success" }).to_string()
        }
        "room.room.message" => {
            broadcast(room, "onMessage", body)?;
            String::new()
        }
        "room.room.entry" => json!({ "result": "ok" }).to_string(),
        "room.room.setsessiondata" => {
            *data = body["data"].clone();
            "success".to_owned()
        }
        "room.room.getsessiondata" => json!({ "Data": data }).to_string(),
        "room.room.notifypush" => {
            push(stream, "testPush", &json!({ "msg": "test" }), &room.dictionary)?;
            String::new()
        }
        _ => {
            let text = format!("pitaya/handler: {route} not found");
            return Ok(Err(Error::new(shared::error::code::NOT_FOUND, text)));
        }
    };
    Ok(Ok(answer.into_bytes()))
}

fn broadcast(room: &Room, route: &str, body: &Value) -> Result<()> {
    for (_, member) in &room.members {
        push(&mut member.try_clone()?, route, body, &room.dictionary)?;
    }
    Ok(())
}

fn push(stream: &mut TcpStream, route: &str, body: &Value, dictionary: &Dictionary) -> Result<()> {
    let body = body.to_string();
    let mut deflater = Deflater::new();
    let compressed = deflater.deflate(body.as_bytes(), 64);
    let head = Head {
        kind: MessageType::Push,
        id: 0,
        route,
        is_compressed: compressed.is_some(),
        is_error: false,
    };
    send_message(stream, &head, compressed.unwrap_or(body.as_bytes()), dictionary)
}

fn respond(
    stream: &mut TcpStream,
    id: u64,
    answer: Result<Vec<u8>, Error>,
    dictionary: &Dictionary,
) -> Result<()> {
    let is_error = answer.is_err();
    let payload = answer.unwrap_or_else(|error| {
        let mut out = Vec::new();
        error.encode(Serializer::Json, &mut out);
        out
    });
    let head = Head { kind: MessageType::Response, id, route: "", is_compressed: false, is_error };
    send_message(stream, &head, &payload, dictionary)
}

fn send_message(
    stream: &mut TcpStream,
    head: &Head<'_>,
    payload: &[u8],
    dictionary: &Dictionary,
) -> Result<()> {
    let mut body = Vec::new();
    message::encode_head(head, dictionary, &mut body)?;
    body.extend_from_slice(payload);
    let mut packet = Vec::new();
    packet::encode(PacketType::Data, &body, &mut packet)?;
    send(stream, &packet)
}

fn send(stream: &mut TcpStream, packet: &[u8]) -> Result<()> {
    let mut frame = Vec::new();
    frame_head(Opcode::Binary, packet.len(), None, &mut frame);
    frame.extend_from_slice(packet);
    Ok(stream.write_all(&frame)?)
}

#[test]
fn two_tabs_chat_through_the_demo_page() -> Result<()> {
    let Some(program) = chromium::find() else {
        eprintln!("NOT TESTED: no Chromium found; name one in DRAGONFRUIT_CHROMIUM");
        return Ok(());
    };
    let url = format!("http://{}/", serve()?);
    let mut browser = chromium::Chromium::start(&program)?;
    let (mut ada, mut bob) = demo_page::two_tabs_chat(&mut browser, &url)?;
    // A folder to look at the page in, for whoever changes it.
    if let Some(folder) = std::env::var_os("DRAGONFRUIT_SCREENSHOTS") {
        let folder = std::path::PathBuf::from(folder);
        ada.resize(1280, 860, false)?;
        ada.screenshot(&folder.join("page-light.png"))?;
        bob.resize(1280, 860, true)?;
        bob.screenshot(&folder.join("page-dark.png"))?;
        bob.resize(400, 1500, false)?;
        bob.screenshot(&folder.join("page-narrow.png"))?;
    }
    Ok(())
}
