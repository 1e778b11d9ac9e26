//! The documentation routes, as pitaya-cli and our client read them.

use std::io::Read;

use flate2::read::GzDecoder;
use prost::Message;
use serde_json::{Value, json};
use shared::config::{Binary, Config};
use worker::prelude::*;

use crate::support::{Harness, request};

mod game {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Spend {
        #[prost(string, tag = "1")]
        pub(super) id: String,
    }
}

#[derive(Serialize, Deserialize)]
struct Buy {
    price: u64,
    gift: Option<String>,
}

/// Fields of the descriptors of protobuf, with the numbers of `descriptor.proto`.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, content.len() as u8], content].concat()
}

/// A set with one file: package `game`, a message `Spend { string id; repeated Item items }`, and `Item` inside it.
fn descriptor_set() -> (Vec<u8>, Vec<u8>) {
    let id = [field(1, b"id"), vec![4 << 3, 1, 5 << 3, 9]].concat();
    let items =
        [field(1, b"items"), vec![4 << 3, 3, 5 << 3, 11], field(6, b".game.Spend.Item")].concat();
    let count = [field(1, b"count"), vec![4 << 3, 1, 5 << 3, 5]].concat();
    let item = [field(1, b"Item"), field(2, &count)].concat();
    let spend = [field(1, b"Spend"), field(2, &id), field(2, &items), field(3, &item)].concat();
    let file = [field(1, b"game.proto"), field(2, b"game"), field(4, &spend)].concat();
    (field(1, &file), file)
}

fn app(set: &[u8]) -> App {
    App::new("room")
        .on("shop.buy", async |buy: Buy| Ok::<_, Error>(buy))
        .on("shop.raw", async |raw: Bytes| Ok::<_, Error>(raw))
        .on("shop.told", async |_: String| {})
        .on("shop.spend", async |Pb(spend): Pb<game::Spend>| Ok::<_, Error>(Pb(spend)))
        .remote("shop.refund", async |Pb(spend): Pb<game::Spend>| Ok::<_, Error>(Pb(spend)))
        .docs("docs")
        .descriptors(set)
}

fn protobuf(app: App) -> App {
    let setting = [("pitaya.serializertype".to_owned(), "2".to_owned())];
    app.configured(&Config::load(Binary::Worker, None, std::iter::empty(), &setting).unwrap())
}

#[tokio::test]
async fn tools_learn_routes_types_and_descriptors() {
    let (set, file) = descriptor_set();
    let harness = Harness::new(protobuf(app(&set))).await;
    let doc = harness.send(&request(1, "room.docs.docs", "")).data().await;
    let docs: Value = serde_json::from_str(&proto::Doc::decode(doc).unwrap().doc).unwrap();
    let spend = json!({"*game.Spend": {
        "id": "string",
        "items": [{"*game.Spend.Item": {"count": "int32"}}],
    }});
    let handlers = &docs["handlers"];
    assert_eq!(handlers["room.shop.spend"], json!({"input": spend, "output": [spend, "error"]}));
    assert_eq!(docs["remotes"]["room.shop.refund"]["input"], spend);
    assert_eq!(
        handlers["room.shop.buy"]["input"],
        json!({"*docs.Buy": {"price": "uint64", "gift": "string"}})
    );
    assert_eq!(
        handlers["room.shop.raw"],
        json!({"input": "[]byte", "output": ["[]byte", "error"]})
    );
    assert_eq!(handlers["room.shop.told"], json!({"input": "string", "output": []}));
    let descriptors = &handlers["room.docs.descriptors"];
    assert_eq!(descriptors["input"], json!({"*protos.ProtoNames": {}}));
    assert_eq!(descriptors["output"][0], json!({"*protos.ProtoDescriptors": {}}));

    for name in ["game.Spend", "game.Spend.Item", "game.proto"] {
        let names = proto::ProtoNames { name: vec![name.into()] }.encode_to_vec();
        let answer = harness.send(&request(1, "room.docs.descriptors", names)).data().await;
        let packed = proto::ProtoDescriptors::decode(answer).unwrap().desc;
        let mut unpacked = Vec::new();
        GzDecoder::new(&packed[0][..]).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, file);
    }
    let names = proto::ProtoNames { name: vec!["game.None".into()] }.encode_to_vec();
    let unknown = harness.send(&request(1, "room.docs.descriptors", names)).error().await;
    assert_eq!(unknown.1, "failed to get protobuf message descriptor");
}

#[tokio::test]
async fn clients_that_speak_json_get_the_documentation_as_json() {
    let harness = Harness::new(app(&[])).await;
    let doc = harness.send(&request(1, "room.docs.docs", "")).data().await;
    let doc: Value = serde_json::from_slice(&doc).unwrap();
    let docs: Value = serde_json::from_str(doc["doc"].as_str().unwrap()).unwrap();
    assert_eq!(docs["handlers"]["room.shop.spend"]["input"], json!({"*game.Spend": {}}));
    let broken = Harness::try_new(app(b"\xff")).await.err().unwrap();
    assert!(broken.msg.contains("descriptors"), "{}", broken.msg);
}
