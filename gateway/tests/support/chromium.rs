//! A headless Chromium that tests drive over the DevTools protocol: open pages, run their JavaScript, look at them.
//!
//! Blocking, one command at a time, no events but the errors that a page reports. The browser gets a profile of its
//! own and a port of the system's choice, and is gone, with its helper processes, when [`Chromium`] is dropped.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::guarded;

/// How long the browser may take to start, and a page to answer a command that sets no time of its own.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running browser.
pub(crate) struct Chromium {
    process: Child,
    devtools: Devtools,
    port: u16,
    _profile: tempfile::TempDir,
}

/// One tab.
pub(crate) struct Page {
    devtools: Devtools,
}

/// The program to start: `DRAGONFRUIT_CHROMIUM`, or the first of the usual names on the `PATH`.
pub(crate) fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("DRAGONFRUIT_CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    ["chromium", "chromium-browser", "google-chrome", "chrome"].iter().find_map(|name| {
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
    })
}

impl Chromium {
    /// Starts `program` ([`find`]) and waits until it takes commands.
    pub(crate) fn start(program: &Path) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let mut command = guarded::command(program);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--disable-sync",
            "--disable-extensions",
            "--disable-background-networking",
            "--disable-component-update",
            // Two tabs take part in a test; neither may be slowed down for being the hidden one.
            "--disable-background-timer-throttling",
            "--disable-renderer-backgrounding",
            "--no-first-run",
            "--hide-scrollbars",
            "--window-size=1280,860",
            "--remote-debugging-port=0",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.arg("about:blank");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A group of its own, so that a start script's browser and the browser's helpers end with it.
        command.process_group(0);
        let mut process =
            guarded::spawn(command).with_context(|| format!("starting {}", program.display()))?;
        let started = devtools_address(&mut process).and_then(|(port, path)| {
            Devtools::connect(port, &path).map(|devtools| (devtools, port))
        });
        match started {
            Ok((devtools, port)) => Ok(Self { process, devtools, port, _profile: profile }),
            Err(error) => {
                end(&mut process);
                Err(error)
            }
        }
    }

    /// Opens a tab; returns before it has loaded, so follow with [`Page::wait_for`].
    pub(crate) fn open(&mut self, url: &str) -> Result<Page> {
        let target =
            self.devtools.command("Target.createTarget", &json!({ "url": "about:blank" }))?;
        let id = target["targetId"].as_str().context("no target id")?;
        let mut devtools = Devtools::connect(self.port, &format!("/devtools/page/{id}"))?;
        devtools.command("Runtime.enable", &json!({}))?;
        devtools.command("Log.enable", &json!({}))?;
        devtools.command("Page.enable", &json!({}))?;
        let navigated = devtools.command("Page.navigate", &json!({ "url": url }))?;
        if let Some(error) = navigated["errorText"].as_str() {
            bail!("{url}: {error}");
        }
        Ok(Page { devtools })
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

fn end(process: &mut Child) {
    if let Some(group) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
        // Fails only when the group is gone already.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = process.wait();
}

/// The port and path of the browser's DevTools socket, from the line that it prints when it takes commands. The file
/// DevToolsActivePort says the same but is not complete yet when it appears. What the browser prints afterwards is
/// read and dropped, or it would block.
fn devtools_address(process: &mut Child) -> Result<(u16, String)> {
    let printed = BufReader::new(process.stderr.take().context("standard error is a pipe")?);
    let (announce, announced) = mpsc::channel();
    std::thread::spawn(move || {
        for line in printed.lines().map_while(Result::ok) {
            if let Some((_, address)) = line.split_once("DevTools listening on ws://") {
                // The receiver may have given up.
                let _ = announce.send(address.trim().to_owned());
            }
        }
    });
    let address = announced.recv_timeout(PATIENCE).context("the browser did not start")?;
    let (host, path) = address.split_once('/').context("the address has a path")?;
    let (_, port) = host.rsplit_once(':').context("the address has a port")?;
    Ok((port.parse()?, format!("/{path}")))
}

impl Page {
    /// The value of a JavaScript expression, awaited if it is a promise. What it throws is the error.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let outcome = self.devtools.command(
            "Runtime.evaluate",
            &json!({ "expression": expression, "awaitPromise": true, "returnByValue": true }),
        )?;
        if let Some(thrown) = outcome.get("exceptionDetails") {
            bail!("{expression}\nthrew {}", describe_exception(thrown));
        }
        Ok(outcome["result"]["value"].clone())
    }

    /// Waits until a JavaScript expression is true, and says what it was at last if that takes longer than `patience`.
    /// The page itself looks, so a page that is still loading is asked again.
    pub(crate) fn wait_for(&mut self, condition: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let look = format!(
            "new Promise((resolve) => {{
                const started = performance.now();
                const look = () => {{
                    let value;
                    try {{ value = ({condition}); }} catch (error) {{ value = String(error); }}
                    if (value === true || performance.now() - started > 500) resolve(value);
                    else setTimeout(look, 10);
                }};
                look();
            }})"
        );
        loop {
            // Navigation throws the context away and with it the promise; the next look is in the new one.
            let last = self.evaluate(&look);
            if matches!(last, Ok(Value::Bool(true))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "waited {patience:?} for {condition}\nlast {last:?}, problems {:?}",
                    self.problems()
                );
            }
        }
    }

    /// Exceptions nobody caught and errors in the console, so far.
    pub(crate) fn problems(&self) -> &[String] {
        &self.devtools.problems
    }

    /// Writes what the tab shows as a PNG.
    pub(crate) fn screenshot(&mut self, file: &Path) -> Result<()> {
        // A tab behind another one is not painted, and the picture would wait for that.
        self.devtools.command("Page.bringToFront", &json!({}))?;
        let shot = self.devtools.command("Page.captureScreenshot", &json!({ "format": "png" }))?;
        let data = shot["data"].as_str().context("no picture")?;
        std::fs::write(file, decode_base64(data).context("the picture is not base64")?)?;
        Ok(())
    }

    /// Sets the size of the page in CSS pixels, and whether it is dark.
    pub(crate) fn resize(&mut self, width: u32, height: u32, is_dark: bool) -> Result<()> {
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools.command("Emulation.setDeviceMetricsOverride", &metrics)?;
        let scheme = if is_dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools.command("Emulation.setEmulatedMedia", &media)?;
        Ok(())
    }
}

/// A DevTools socket: commands out, their answers back, errors of the page collected on the way.
struct Devtools {
    socket: WebSocket<TcpStream>,
    next_id: u64,
    problems: Vec<String>,
}

impl Devtools {
    fn connect(port: u16, path: &str) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let (socket, _) = tungstenite::client(format!("ws://127.0.0.1:{port}{path}"), stream)
            .map_err(|error| anyhow!("DevTools refused: {error}"))?;
        Ok(Self { socket, next_id: 1, problems: Vec::new() })
    }

    fn command(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        let id = self.next_id;
        self.next_id += 1;
        let command = json!({ "id": id, "method": method, "params": parameters });
        self.socket.send(Message::text(command.to_string()))?;
        loop {
            let message = self.socket.read().with_context(|| format!("waiting for {method}"))?;
            let Message::Text(text) = message else { continue };
            let mut answer: Value = serde_json::from_str(&text)?;
            if answer["id"] != id {
                self.note(&answer);
            } else if let Some(error) = answer.get("error") {
                bail!("{method}: {error}");
            } else {
                return Ok(answer["result"].take());
            }
        }
    }

    fn note(&mut self, event: &Value) {
        let parameters = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => {
                self.problems.push(describe_exception(&parameters["exceptionDetails"]));
            }
            Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => {
                self.problems.push(parameters["entry"]["text"].to_string());
            }
            Some("Runtime.consoleAPICalled") if parameters["type"] == "error" => {
                self.problems.push(parameters["args"].to_string());
            }
            _ => {}
        }
    }
}

fn describe_exception(details: &Value) -> String {
    let described = &details["exception"]["description"];
    if described.is_string() { described.to_string() } else { details.to_string() }
}

/// Standard base64 with padding, as DevTools writes it.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}
