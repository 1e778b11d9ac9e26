//! A protobuf server's documentation: what its routes take and give, and the descriptor of the one type they share,
//! `message protos.Say { string text = 1; int64 number = 2; }`.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proto::{Doc, Message, ProtoDescriptors, ProtoNames};
use serde_json::json;

pub(crate) fn documentation() -> Vec<u8> {
    let say = json!({"*protos.Say": {"text": "string", "number": "int64"}});
    let descriptors = json!({
        "input": {"*protos.ProtoNames": {"name": ["string"]}},
        "output": [{"*protos.ProtoDescriptors": {"desc": ["[]byte"]}}, "error"],
    });
    let docs = json!({
        "handlers": {
            "room.test.descriptors": descriptors,
            "room.test.echo": {"input": say, "output": [say, "error"]},
            "room.test.push": {"input": say, "output": [say, "error"]},
        },
        "remotes": {},
    });
    Doc { doc: docs.to_string() }.encode_to_vec()
}

/// One descriptor for each name asked for, in the order of the names.
pub(crate) fn descriptors(names: &[u8]) -> Vec<u8> {
    let names = ProtoNames::decode(names).unwrap().name;
    assert!(names.contains(&"protos.Say".to_owned()), "{names:?}");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&file()).unwrap();
    let packed = gzip.finish().unwrap();
    let desc = names.iter().map(|_| packed.clone().into()).collect();
    ProtoDescriptors { desc }.encode_to_vec()
}

/// `google.protobuf.FileDescriptorProto` by hand.
fn file() -> Vec<u8> {
    let text = field("text", 1, 9);
    let number = field("number", 2, 3);
    let say = [part(1, b"Say"), part(2, &text), part(2, &number)].concat();
    [part(1, b"say.proto"), part(2, b"protos"), part(4, &say), part(12, b"proto3")].concat()
}

fn field(name: &str, number: u8, kind: u8) -> Vec<u8> {
    let numbers = [3 << 3, number, 4 << 3, 1, 5 << 3, kind];
    [part(1, name.as_bytes()), numbers.to_vec(), part(10, name.as_bytes())].concat()
}

fn part(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag << 3 | 2, content.len() as u8];
    bytes.extend_from_slice(content);
    bytes
}
