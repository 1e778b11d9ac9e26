//! What a visitor does on the demo page, step by step; the same for any server that serves it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::chromium::{Chromium, Page};

const PATIENCE: Duration = Duration::from_secs(10);

/// Opens the page and waits until it has joined the room.
pub(crate) fn enter(browser: &mut Chromium, url: &str, name: &str) -> Result<Page> {
    let mut page = browser.open(url)?;
    page.wait_for("document.getElementById('state')?.dataset.state === 'open'", PATIENCE)?;
    page.wait_for(
        "document.getElementById('members').textContent.startsWith('in the room')",
        PATIENCE,
    )?;
    page.evaluate(&format!("document.getElementById('name').value = {name:?}"))?;
    Ok(page)
}

/// Types a message and sends it with the button.
pub(crate) fn say(page: &mut Page, content: &str) -> Result<()> {
    page.evaluate(&format!("document.getElementById('content').value = {content:?}"))?;
    page.evaluate("document.getElementById('send').click()")?;
    Ok(())
}

/// Waits until the page shows a message of `name`.
pub(crate) fn expect_message(page: &mut Page, name: &str, content: &str) -> Result<()> {
    let found = format!(
        "[...document.querySelectorAll('#messages li')].some((line) => line.textContent === {:?})",
        format!("{name}{content}")
    );
    page.wait_for(&found, PATIENCE)
}

/// Presses a button of the cluster panel and waits until the answer contains `expected`.
pub(crate) fn call(page: &mut Page, button: &str, expected: &str) -> Result<()> {
    page.evaluate("document.getElementById('answer').textContent = ''")?;
    page.evaluate(&format!("document.querySelector({button:?}).click()"))?;
    let answered = format!("document.getElementById('answer').textContent.includes({expected:?})");
    page.wait_for(&answered, PATIENCE)
}

/// Two tabs meet in the room, talk, and one of them plays with its session. Returns both as they are at the end.
pub(crate) fn two_tabs_chat(browser: &mut Chromium, url: &str) -> Result<(Page, Page)> {
    let mut ada = enter(browser, url, "ada")?;
    let mut bob = enter(browser, url, "bob")?;
    let news =
        "document.querySelector('#messages .news')?.textContent.startsWith('New user: ') === true";
    ada.wait_for(news, PATIENCE)?;
    say(&mut ada, "hello <b>bob</b>")?;
    expect_message(&mut bob, "ada", "hello <b>bob</b>")?;
    say(&mut bob, "grüße 👋")?;
    expect_message(&mut ada, "bob", "grüße 👋")?;
    expect_message(&mut bob, "bob", "grüße 👋")?;
    // Long enough for a server that compresses to do it.
    let long = "so long and thanks for all the fruit, ".repeat(12);
    say(&mut ada, long.trim_end())?;
    expect_message(&mut bob, "ada", long.trim_end())?;

    call(&mut bob, "#session button", "success")?;
    call(&mut bob, "[data-route='room.room.getsessiondata']", "\"level\": 7")?;
    call(&mut bob, "[data-route='room.room.notifypush']", "testPush")?;
    bob.evaluate("document.getElementById('route').value = 'room.room.nosuch'")?;
    call(&mut bob, "#any button", "PIT-404")?;
    for page in [&ada, &bob] {
        ensure!(page.problems().is_empty(), "the page reported {:?}", page.problems());
    }
    Ok((ada, bob))
}
