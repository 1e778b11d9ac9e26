//! Functions before and after handlers and remotes, and validation.

use bytes::Bytes;
use prost::Message;
use shared::config::{Binary, Config};
use worker::prelude::*;

use crate::Journal;
use crate::support::{Harness, notify, request};

#[derive(Serialize, Deserialize, Debug)]
struct Buy {
    price: u64,
}

impl Validate for Buy {
    fn validate(&self) -> Result<()> {
        if self.price > 1000 {
            bail!("PIT-000", "price: {} is above 1000", self.price)
        }
        Ok(())
    }
}

fn shop(journal: &Journal) -> App {
    let handler = journal.clone();
    App::new("shop").on("shop.buy", move |buy: Buy| {
        let journal = handler.clone();
        async move {
            journal.note(format!("buy {}", buy.price));
            Ok::<_, Error>(buy)
        }
    })
}

fn remote_call(route: &str, data: impl Into<Bytes>) -> proto::Request {
    proto::Request { r#type: 1, session: None, ..request(0, route, data) }
}

#[tokio::test]
async fn functions_run_in_their_order_around_the_handler() {
    let journal = Journal::default();
    let app = shop(&journal)
        .before(journal.step("before 1"))
        .before_in("other", journal.step("before other"))
        .before_in("shop", journal.step("before shop"))
        .after(journal.step("after 1"))
        .after_in("shop", journal.step("after shop"))
        .after_in("other", journal.step("after other"))
        .before_remote(journal.step("before remote"));
    let harness = Harness::new(app).await;
    let answer = harness.send(&request(1, "shop.shop.buy", r#"{"price":7}"#)).data().await;
    assert_eq!(&answer[..], br#"{"price":7}"#);
    let steps = ["before 1", "before shop", "buy 7", "after 1", "after shop"];
    assert_eq!(journal.take(), steps);
}

#[tokio::test]
async fn the_first_failure_before_a_handler_is_the_answer_and_nothing_else_runs() {
    let journal = Journal::default();
    let app = shop(&journal)
        .before(journal.step("before 1"))
        .before(async |ctx: Ctx| -> Result<()> { bail!("GAME-1", "no {}", ctx.route()) })
        .before(journal.step("before 3"))
        .after(journal.step("after"));
    let harness = Harness::new(app).await;
    let answer = harness.send(&request(1, "shop.shop.buy", r#"{"price":7}"#)).error().await;
    assert_eq!(answer, ("GAME-1".into(), "no shop.shop.buy".into()));
    assert_eq!(journal.take(), ["before 1"]);
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_refused_before_anything_runs() {
    let journal = Journal::default();
    let app = shop(&journal).before(journal.step("before")).after(journal.step("after"));
    let harness = Harness::new(app).await;
    for bad in ["", "{", r#"{"price":-1}"#, r#"{"price":"x"}"#, "\u{0}"] {
        let answer = harness.send(&request(1, "shop.shop.buy", bad)).error().await;
        assert_eq!(answer.0, "PIT-400", "{bad}");
    }
    assert!(journal.take().is_empty());
}

#[tokio::test]
async fn a_function_that_returns_a_value_replaces_the_message_or_the_answer() {
    let journal = Journal::default();
    let app = shop(&journal)
        .before(async |buy: Buy| Ok::<_, Error>(Buy { price: buy.price * 2 }))
        .before(async |buy: Buy| Ok::<_, Error>(Buy { price: buy.price + 1 }))
        .after(async |Outcome(outcome): Outcome| -> Result<Bytes> {
            Ok([&outcome?[..], b"!"].concat().into())
        })
        .after(async |Outcome(outcome): Outcome| -> Result<Bytes> {
            Ok([&outcome?[..], b"?"].concat().into())
        });
    let harness = Harness::new(app).await;
    let answer = harness.send(&request(1, "shop.shop.buy", r#"{"price":7}"#)).data().await;
    assert_eq!(&answer[..], br#"{"price":15}!?"#);
    assert_eq!(journal.take(), ["buy 15"]);
    let refused = App::new("shop")
        .on("shop.buy", async |_: Buy| Ok::<_, Error>(1))
        .before(async || Ok::<_, Error>("no purchase at all"));
    let harness = Harness::new(refused).await;
    let answer = harness.send(&request(1, "shop.shop.buy", r#"{"price":7}"#)).error().await;
    assert_eq!(answer.0, "PIT-400", "what was made of the message must fit the handler");
}

#[tokio::test]
async fn functions_after_a_handler_see_failures_and_panics_and_may_mend_them() {
    let journal = Journal::default();
    let noted = journal.clone();
    let app = App::new("shop")
        .on("shop.fail", async || -> Result<u8> { bail!("GAME-2", "sold out") })
        .on("shop.panic", async || -> Result<u8> { panic!("out of shelf") })
        .on("shop.told", async || {})
        .after(move |Outcome(outcome): Outcome| {
            let journal = noted.clone();
            async move { journal.note(format!("{outcome:?}")) }
        })
        .after_in("shop", async |ctx: Ctx, Outcome(outcome): Outcome| -> Result<()> {
            if ctx.route().ends_with("fail") {
                return Err(outcome.err().unwrap().with("seen", "yes"));
            }
            Ok(())
        });
    let harness = Harness::new(app).await;
    let failed = harness.send(&request(1, "shop.shop.fail", "")).response().await.error.unwrap();
    assert_eq!((failed.code.as_str(), failed.metadata["seen"].as_str()), ("GAME-2", "yes"));
    let panicked = harness.send(&request(1, "shop.shop.panic", "")).error().await;
    assert_eq!(panicked, ("PIT-000".into(), "out of shelf".into()));
    assert_eq!(&harness.send(&notify(1, "shop.shop.told", "")).data().await[..], b"ack");
    let told = journal.take();
    assert_eq!(told, ["Err(GAME-2: sold out)", "Err(PIT-000: out of shelf)", "Ok(b\"ack\")"]);
    assert_eq!(harness.service.counters().read(worker::Counter::Panicked), 1);
}

#[tokio::test]
async fn a_panic_in_a_function_is_an_answer_and_the_session_goes_on() {
    let app = App::new("shop")
        .on("shop.one", async || Ok::<_, Error>(1))
        .on("other.one", async || Ok::<_, Error>(1))
        .before_in("shop", async || -> Result<()> { panic!("at the door") })
        .after_in("other", async || -> Result<()> { panic!("on the way out") });
    let harness = Harness::new(app).await;
    for (route, text) in [("shop.shop.one", "at the door"), ("shop.other.one", "on the way out")] {
        assert_eq!(harness.send(&request(1, route, "")).error().await.1, text);
    }
}

#[tokio::test]
async fn what_a_function_leaves_is_found_by_the_handler_of_the_same_call_only() {
    struct Level(u32);
    let app = App::new("shop")
        .on("shop.level", async |ctx: Ctx| {
            Ok::<_, Error>(ctx.find::<Level>().map_or(0, |level| level.0))
        })
        .before(async |ctx: Ctx, session: Session| {
            if session.id() == 1 {
                ctx.insert(Level(3));
                ctx.insert(Level(4));
            }
        });
    let harness = Harness::new(app).await;
    assert_eq!(&harness.send(&request(1, "shop.shop.level", "")).data().await[..], b"4");
    assert_eq!(&harness.send(&request(2, "shop.shop.level", "")).data().await[..], b"0");
}

#[tokio::test]
async fn remotes_have_their_own_functions_and_a_refusal_there_is_pit_500() {
    let journal = Journal::default();
    let app = App::new("shop")
        .remote("shop.doc", async |Pb(doc): Pb<proto::Doc>| Ok::<_, Error>(Pb(doc)))
        .before(journal.step("before handler"))
        .before_remote(async |Pb(doc): Pb<proto::Doc>| -> Result<()> {
            match doc.doc.as_str() {
                "plain" => Err(Error::unknown("not this one")),
                "coded" => bail!("GAME-3", "not this one either"),
                _ => Ok(()),
            }
        })
        .after_remote(journal.step("after remote"));
    let harness = Harness::new(app).await;
    let call =
        |doc: &str| remote_call("shop.shop.doc", proto::Doc { doc: doc.into() }.encode_to_vec());
    harness.send(&call("fine")).data().await;
    assert_eq!(harness.send(&call("plain")).error().await.0, "PIT-500");
    assert_eq!(harness.send(&call("coded")).error().await.0, "GAME-3");
    assert_eq!(harness.send(&remote_call("shop.shop.doc", "\u{1}")).error().await.0, "PIT-400");
    assert_eq!(journal.take(), ["after remote"]);
}

#[tokio::test]
async fn valid_validates_always_and_named_types_when_it_is_configured() {
    let journal = Journal::default();
    let valid = |app: App| app.on("shop.valid", async |Valid(buy): Valid<Buy>| Ok::<_, Error>(buy));
    let dear = r#"{"price":1001}"#;
    let off = Harness::new(valid(shop(&journal)).validate::<Buy>()).await;
    off.send(&request(1, "shop.shop.buy", dear)).data().await;
    let refused = ("PIT-000".to_owned(), "price: 1001 is above 1000".to_owned());
    assert_eq!(off.send(&request(1, "shop.shop.valid", dear)).error().await, refused);
    off.send(&request(1, "shop.shop.valid", r#"{"price":1000}"#)).data().await;

    let key = "pitaya.defaultpipelines.structvalidation.enabled".to_owned();
    let setting = [(key, "true".to_owned())];
    let config = Config::load(Binary::Worker, None, std::iter::empty(), &setting).unwrap();
    // The validation sees what the functions before the handler made of the message.
    let app = valid(shop(&journal))
        .on("shop.raw", async |raw: Bytes| Ok::<_, Error>(raw))
        .on("shop.none", async || Ok::<_, Error>(1))
        .before_in("shop", journal.step("before"))
        .validate::<Buy>()
        .configured(&config);
    let on = Harness::new(app).await;
    journal.take();
    assert_eq!(on.send(&request(1, "shop.shop.buy", dear)).error().await, refused);
    assert_eq!(journal.take(), ["before"]);
    on.send(&request(1, "shop.shop.buy", r#"{"price":1000}"#)).data().await;
    on.send(&request(1, "shop.shop.raw", dear)).data().await;
    on.send(&request(1, "shop.shop.none", "")).data().await;
}

struct Door(Journal);

#[handlers("door")]
impl Door {
    pub async fn on_ready(&self) {
        self.0.note("ready");
    }

    pub async fn before(&self, session: Session) -> Result<()> {
        self.0.note("before");
        if session.id() == 13 { Err(Error::new("GAME-13", "not you")) } else { Ok(()) }
    }

    pub async fn after(&self, Outcome(outcome): Outcome) {
        self.0.note(format!("after {}", outcome.is_ok()));
    }

    pub async fn open(&self) -> Result<u8> {
        self.0.note("open");
        Ok(1)
    }
}

#[tokio::test]
async fn a_component_brings_the_functions_around_its_own_handlers() {
    let journal = Journal::default();
    let app = App::new("room")
        .component(Door(journal.clone()))
        .on("wall.open", async || Ok::<_, Error>(0));
    let harness = Harness::new(app).await;
    harness.send(&request(1, "room.door.open", "")).data().await;
    harness.send(&request(13, "room.wall.open", "")).data().await;
    assert_eq!(harness.send(&request(13, "room.door.open", "")).error().await.0, "GAME-13");
    assert_eq!(journal.take(), ["ready", "before", "open", "after true", "before"]);
}

#[tokio::test]
async fn what_a_function_needs_is_found_missing_at_the_start() {
    let app = App::new("shop").before(async |_: State<u64>| {});
    let error = Harness::try_new(app).await.err().unwrap();
    assert!(error.msg.contains("pipeline: State<u64>"), "{}", error.msg);
}
