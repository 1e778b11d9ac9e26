//! The vectors of the client protocol, section 18.2, and the edges of the acceptance rules of 5.1.

use super::*;

const LIMIT: usize = REQUEST_BYTES_MAX_DEFAULT;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn options<'a>(dictionary: &'a Dictionary, serializer: &'a str) -> HandshakeOptions<'a> {
    HandshakeOptions { heartbeat_s: 30, dictionary, serializer, compression: true }
}

fn chat_dictionary() -> Dictionary {
    let mut dictionary = Dictionary::default();
    let entries = [
        ("connector.getsessiondata", 1),
        ("connector.setsessiondata", 2),
        ("room.room.getsessiondata", 3),
        ("onMessage", 4),
        ("onMembers", 5),
    ];
    dictionary.insert_all(entries).unwrap();
    dictionary
}

const H1: &str =
    "010000417b22636f6465223a3230302c22737973223a7b2264696374223a7b7d2c22686561727462656174223a
    33302c2273657269616c697a6572223a226a736f6e227d7d";
const H2: &str =
    "010000457b22636f6465223a3230302c22737973223a7b2264696374223a7b7d2c22686561727462656174223a
    33302c2273657269616c697a6572223a2270726f746f627566227d7d";
const H3: &str =
    "010000417b22636f6465223a3430302c22737973223a7b2264696374223a7b7d2c22686561727462656174223a
    33302c2273657269616c697a6572223a226a736f6e227d7d";
const H4: &str = "789c5c8e41aac3300c44ef326b13f293df8deed04328b6485d1a0b246ddae0bb97b49b92cd0cc383e1edc85a0434
    8d63823f1db4a3d41c47676d4d72a80dab848b7bd5563818f4977ea09fe094a0ed2adb22e6a0cb77b9f32aa0ff0453dd864f9c5fe79e7013
    b6588403341f4662951ff52506c2ddb5a1f777000000ffffbe583e3b";
const H6: &str = "010000787b22737973223a7b22706c6174666f726d223a226d6163222c226c696256657273696f6e223a22302e33
    2e352d72656c65617365222c22636c69656e744275696c644e756d626572223a223230222c22636c69656e7456657273696f6e223a22322e
    31227d2c2275736572223a7b22616765223a33307d7d";
const H7: &str =
    "010000447b22737973223a7b2274797065223a226a732d776562736f636b6574222c2276657273696f6e223a2230
    2e302e31222c22727361223a7b7d7d2c2275736572223a7b7d7d";
const H8: &str = "010000627b22737973223a7b22706c6174666f726d223a226465736b746f70222c226c696256657273696f6e223a
    22342e362e322d222c22636c69656e744275696c644e756d626572223a2231222c22636c69656e7456657273696f6e223a22302e31227d
    7d";

#[test]
fn the_default_responses_have_the_published_bytes() {
    let none = Dictionary::default();
    let json = HandshakeResponses::new(&options(&none, "json")).unwrap();
    assert_eq!(json.accepted, hex(H1), "H1");
    assert_eq!(json.refused, hex(H3), "H3");
    let protobuf = HandshakeResponses::new(&options(&none, "protobuf")).unwrap();
    assert_eq!(protobuf.accepted, hex(H2), "H2");
}

const CHAT_JSON: &str = concat!(
    r#"{"code":200,"sys":{"dict":{"connector.getsessiondata":1,"connector.setsessiondata":2,"onMembers":5,"#,
    r#""onMessage":4,"room.room.getsessiondata":3},"heartbeat":30,"serializer":"json"}}"#
);

#[test]
fn a_dictionary_is_announced_sorted_and_compressed_when_that_helps() {
    let chat = chat_dictionary();
    let mut options = options(&chat, "json");
    let compressed = HandshakeResponses::new(&options).unwrap().accepted;
    let read = decode_response(&compressed[packet::HEADER_BYTES..]).unwrap();
    assert!(compressed.len() < CHAT_JSON.len());
    assert_eq!((read.code, read.heartbeat_s, read.serializer.as_str()), (200, 30, "json"));
    assert!(read.dictionary.iter().eq(chat.iter()));

    options.compression = false;
    let plain = HandshakeResponses::new(&options).unwrap().accepted;
    assert_eq!(plain[..packet::HEADER_BYTES], [1, 0, 0, 0xb3], "H5");
    assert_eq!(plain[packet::HEADER_BYTES..], *CHAT_JSON.as_bytes(), "H5");
}

#[test]
fn a_client_reads_what_go_servers_send() {
    let go = decode_response(&hex(H4)).unwrap();
    assert!(go.dictionary.iter().eq(chat_dictionary().iter()), "H4");
    let refused = decode_response(&hex(H3)[packet::HEADER_BYTES..]).unwrap();
    assert_eq!((refused.code, refused.heartbeat_s), (400, 30), "H3");
    let pomelo = decode_response(br#"{"code":501,"user":{"a":1},"sys":null}"#).unwrap();
    assert_eq!((pomelo.code, pomelo.heartbeat_s, pomelo.serializer.as_str()), (501, 0, ""));
    assert!(decode_response(b"").is_err());
    assert!(decode_response(b"x\x9c").is_err());
    assert!(decode_response(br#"{"code":200,"sys":{"dict":{"a":70000}}}"#).is_err());
    assert!(decode_response(br#"{"code":200,"sys":{"dict":{"a":0}}}"#).is_err());
}

#[test]
fn routes_are_escaped_in_the_response_as_go_escapes_them() {
    let mut dictionary = Dictionary::default();
    dictionary.insert_all([("a<b>\"", 7)]).unwrap();
    let options = HandshakeOptions { compression: false, ..options(&dictionary, "json") };
    let response = HandshakeResponses::new(&options).unwrap().accepted;
    let text = String::from_utf8(response).unwrap();
    assert!(text.contains(r#"{"a\u003cb\u003e\"":7}"#), "{text}");
}

fn decode_packet(vector: &str) -> HandshakeRequest {
    let bytes = hex(vector);
    let (packet, taken) = packet::decode(&bytes, LIMIT).unwrap().unwrap();
    assert_eq!((packet.kind, taken), (PacketType::Handshake, bytes.len()));
    decode_request(packet.body, LIMIT).unwrap()
}

#[test]
fn the_requests_of_the_known_clients_are_accepted() {
    let go = decode_packet(H6);
    assert_eq!(go.sys.platform, "mac");
    assert_eq!(go.sys.lib_version, "0.3.5-release");
    assert_eq!(
        (go.sys.client_build_number.as_str(), go.sys.client_version.as_str()),
        ("20", "2.1")
    );
    assert_eq!(go.user.get("age"), Some(&Value::from(30)));
    assert_eq!(encode_request(&go), hex(H6)[packet::HEADER_BYTES..], "H6");

    let libpitaya = decode_packet(H8);
    assert_eq!(
        (libpitaya.sys.platform.as_str(), libpitaya.sys.client_version.as_str()),
        ("desktop", "0.1")
    );
    assert!(libpitaya.user.is_empty());
}

#[test]
fn the_request_of_the_browser_client_is_accepted_and_its_own_keys_are_dropped() {
    let body = &hex(H7)[packet::HEADER_BYTES..];
    assert_eq!(decode_request(body, LIMIT).unwrap(), HandshakeRequest::default(), "H7");
}

#[test]
fn everything_that_go_accepts_is_accepted() {
    let empty: [&[u8]; 7] = [
        b"{}",
        b"null",
        b" {} ",
        br#"{"sys":null}"#,
        br#"{"user":null}"#,
        br#"{"sys":{"platform":null},"other":[1,{"a":2}]}"#,
        b"\t\r\n {}\n",
    ];
    for body in empty {
        assert_eq!(decode_request(body, LIMIT).unwrap(), HandshakeRequest::default(), "H10");
    }
    let platform = |body: &[u8]| decode_request(body, LIMIT).unwrap().sys.platform;
    assert_eq!(platform(br#"{"SYS":{"PLATFORM":"a"}}"#), "a", "H10");
    assert_eq!(platform(br#"{"sys":{"platform":"mac"}}"#), "mac", "H10");
    assert_eq!(platform(br#"{"sys":{"platform":"a","Platform":"b"}}"#), "b");
    assert_eq!(platform(br#"{"sys":{"platform":"a"},"sys":{"platform":"\u00e9"}}"#), "é");
}

#[test]
fn everything_that_go_refuses_is_refused() {
    let refused: [&[u8]; 18] = [
        b"",
        b"[]",
        br#""x""#,
        b"1",
        b"{} x",
        b"{}{}",
        br#"{"sys":{"platform":1}}"#,
        br#"{"sys":{"clientVersion":{}}}"#,
        br#"{"sys":[]}"#,
        br#"{"user":[]}"#,
        br#"{"user":"x"}"#,
        b"asiodjasd",
        br#"{"sys":{"platform":"a"}"#,
        br#"{"user":{"a":01}}"#,
        b"\x78\x9c\xab\xae\x05\x00\x01\x75\x00\xf9",
        b"{\"sys\":{\"platform\":\"\xff\"}",
        b"{\"sys\":\xff}",
        b"true",
    ];
    for body in refused {
        let result = decode_request(body, LIMIT);
        assert!(matches!(result, Err(HandshakeError::Json(_))), "H9: {}", body.escape_ascii());
    }
}

#[test]
fn a_refusal_does_not_quote_the_peer() {
    let error = decode_request(br#"{"user":"inject\nthis"}"#, LIMIT).unwrap_err();
    assert_eq!(error.to_string(), "handshake is not acceptable JSON, line 1, column 22");
}

#[test]
fn length_and_depth_are_bounded() {
    let mut body = br#"{"user":{"a":""#.to_vec();
    body.resize(LIMIT - 3, b'x');
    body.extend_from_slice(br#""}}"#);
    assert!(decode_request(&body, LIMIT).is_ok());
    body.push(b' ');
    assert!(matches!(decode_request(&body, LIMIT), Err(HandshakeError::TooLarge { .. })));
    let deep = format!(r#"{{"user":{{"a":{}{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(decode_request(deep.as_bytes(), 1 << 20), Err(HandshakeError::Json(_))));
    let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert!(decode_request(deep.as_bytes(), 1 << 20).is_ok(), "ignored members cost no stack");
}

#[test]
fn a_text_that_was_cut_inside_an_emoji_does_not_refuse_the_client() {
    let cut = br#"{"sys":{"platform":"\ud83d"},"user":{"name":"a\udc00"}}"#;
    let request = decode_request(cut, LIMIT).unwrap();
    assert_eq!(request.sys.platform, "\u{fffd}");
    assert_eq!(request.user["name"], "a\u{fffd}");
    let latin = decode_request(b"{\"sys\":{\"platform\":\"\xe9\"}}", LIMIT).unwrap();
    assert_eq!(latin.sys.platform, "\u{fffd}");
    assert!(decode_request(b"{\"sys\":\xe9}", LIMIT).is_err());
    assert!(decode_request(br#"{"sys":{"platform":"\ud83d"}"#, LIMIT).is_err());
}
