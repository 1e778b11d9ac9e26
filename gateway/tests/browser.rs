//! The demo as a newcomer sees it: two tabs of a real browser chat through a standalone gateway, on both drivers.

#[path = "support/chromium.rs"]
mod chromium;
#[path = "support/demo_page.rs"]
mod demo_page;
#[path = "../../shared/tests/servers/guarded.rs"]
mod guarded;

use anyhow::Result;
use chromium::Chromium;
use gateway::control::plan::Plan;
use gateway::gateway::{Commands, Gateway};
use shared::config::{Binary, Config};
use worker::demo::{DemoOptions, app};

fn start(driver: &str) -> Gateway {
    let settings = [
        ("pitaya.gateway.tcp", "127.0.0.1:0"),
        ("pitaya.gateway.ws", "127.0.0.1:0"),
        ("pitaya.admin.listen", "127.0.0.1:0"),
        ("pitaya.gateway.demo", "true"),
        ("pitaya.gateway.driver", driver),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let config =
        Config::load(Binary::Gateway, None, std::iter::empty(), &settings).expect("good settings");
    let plan =
        Plan::new(&config, Some(app(DemoOptions { test_routes: false }))).expect("a good plan");
    Gateway::start(plan, Commands::new()).expect("the gateway starts")
}

#[test]
fn two_tabs_chat_through_the_gateway() -> Result<()> {
    let Some(program) = chromium::find() else {
        println!("NOT TESTED: there is no Chromium; install it or set DRAGONFRUIT_CHROMIUM");
        return Ok(());
    };
    let mut browser = Chromium::start(&program)?;
    for driver in ["uring", "epoll"] {
        let gateway = start(driver);
        let url = format!("http://{}/", gateway.addresses().ws[0]);
        let (mut first, mut second) = demo_page::two_tabs_chat(&mut browser, &url)?;
        if let Some(directory) = std::env::var_os("DRAGONFRUIT_SCREENSHOTS") {
            first.resize(1280, 800, false)?;
            first.screenshot(
                &std::path::Path::new(&directory).join(format!("gateway-{driver}.png")),
            )?;
        }
        assert!(first.problems().is_empty(), "{:?}", first.problems());
        demo_page::say(&mut second, "and bye")?;
        gateway.stop();
    }
    Ok(())
}
