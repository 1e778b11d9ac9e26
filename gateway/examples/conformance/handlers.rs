//! The handlers (`testsvc`) and remotes (`testremotesvc`) that Pitaya's end-to-end test calls.

use bytes::Bytes;
use worker::prelude::*;

use crate::wire::Wire;

const GROUP: &str = "g1";
/// Where the test's clients are, whatever the type of this server.
const FRONTEND: &str = "connector";

#[derive(Clone, PartialEq, prost::Message, Deserialize, Serialize)]
#[serde(default)]
struct TestRequest {
    #[prost(string, tag = "1")]
    msg: String,
}

#[derive(Clone, PartialEq, prost::Message, Deserialize, Serialize)]
#[serde(default)]
struct TestResponse {
    #[prost(int32, tag = "1")]
    #[serde(skip_serializing_if = "is_zero")]
    code: i32,
    #[prost(string, tag = "2")]
    #[serde(skip_serializing_if = "String::is_empty")]
    msg: String,
}

#[derive(Deserialize)]
struct RpcRequest {
    route: String,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct SendToUsers {
    uids: Vec<String>,
    msg: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

fn ok(msg: impl Into<String>) -> TestResponse {
    TestResponse { code: 200, msg: msg.into() }
}

pub(crate) fn app(server_type: &str) -> App {
    let app = App::new(server_type)
        .on_start(async |groups: Groups| groups.create(GROUP).await)
        .on("testsvc.testrequestonlysessionreturnsptr", async || answered(ok("hello")))
        .on("testsvc.testrequestonlysessionreturnsptrnil", async || -> Result<_> {
            Ok(None::<TestResponse>)
        })
        .on("testsvc.testrequestonlysessionreturnsrawnil", async || -> Result<_> {
            Ok(None::<Bytes>)
        })
        .on("testsvc.testrequestreturnsptr", async |request: Wire<TestRequest>| {
            answered(ok(request.0.msg))
        })
        .on("testsvc.testrequestreturnsraw", async |request: Wire<TestRequest>| -> Result<_> {
            Ok(Bytes::from(request.0.msg))
        })
        .on("testsvc.testrequestreceivereturnsraw", async |raw: Bytes| -> Result<_> { Ok(raw) })
        .on("testsvc.testrequestreturnserror", async |_: Bytes| -> Result<Bytes> {
            bail!("PIT-555", "somerror")
        });
    let app = sessions(app);
    let app = pushes(app);
    calls(app)
}

#[expect(clippy::unnecessary_wraps, reason = "it is what handlers return")]
fn answered(response: TestResponse) -> Result<Wire<TestResponse>> {
    Ok(Wire(response))
}

fn sessions(app: App) -> App {
    app.on("testsvc.testbind", async |session: Session, groups: Groups| -> Result<Bytes> {
        bind(&session, &groups, &uuid::Uuid::new_v4().to_string()).await
    })
    .on("testsvc.testbindid", async |session: Session, groups: Groups, uid: Bytes| {
        bind(&session, &groups, &text(&uid)).await
    })
    .on("testsvc.testrequestkickme", async |session: Session| -> Result<_> {
        session.kick().await?;
        answered(ok("ok"))
    })
    .on(
        "testsvc.testrequestkickuser",
        async |push: Push, ctx: Ctx, uid: Bytes| -> Result<_> {
            let kicked = push.kick(&[text(&uid)], ctx.server_type()).await;
            kicked.map_err(|_| Error::new("PIT-404", "session not found"))?;
            answered(ok("ok"))
        },
    )
}

async fn bind(session: &Session, groups: &Groups, uid: &str) -> Result<Bytes> {
    let with_code = |code: &'static str| move |error: Error| Error::new(code, error.msg);
    session.bind(uid).await.map_err(with_code("PIT-444"))?;
    groups.add(GROUP, uid).await.map_err(with_code("PIT-441"))?;
    Ok(Bytes::from_static(b"ack"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn pushes(app: App) -> App {
    app.on("testsvc.testsendgroupmsg", async |groups: Groups, message: Bytes| {
        groups.via(FRONTEND).broadcast(GROUP, "route.test", &message).await
    })
    .on("testsvc.testsendgroupmsgptr", async |groups: Groups, message: Wire<TestRequest>| {
        groups.via(FRONTEND).broadcast(GROUP, "route.testptr", &message).await
    })
    .on("testsvc.testsendtousers", async |push: Push, message: SendToUsers| {
        let data = Bytes::from(message.msg);
        push.to_users(&message.uids, FRONTEND, "route.sendtousers", &data).await
    })
}

fn calls(app: App) -> App {
    app.on("testsvc.testsendrpc", async |rpc: Rpc, message: RpcRequest| -> Result<_> {
        let argument = TestRequest { msg: message.data };
        answered(rpc.call(&message.route, &argument).await?)
    })
    .on("testsvc.testsendrpcnoargs", async |rpc: Rpc, message: RpcRequest| -> Result<_> {
        answered(rpc.call(&message.route, &()).await?)
    })
    .remote("testremotesvc.rpctestrawptrreturnsptr", got)
    .remote("testremotesvc.rpctestptrreturnsptr", got)
    .remote("testremotesvc.rpctestreturnserror", async || -> Result<Pb<TestResponse>> {
        Err(Error::new("PIT-433", "test error").with("some", "meta"))
    })
    .remote("testremotesvc.rpctestnoargs", async || -> Result<_> { Ok(Pb(ok("got nothing"))) })
}

async fn got(Pb(request): Pb<TestRequest>) -> Result<Pb<TestResponse>> {
    Ok(Pb(ok(format!("got {}", request.msg))))
}
