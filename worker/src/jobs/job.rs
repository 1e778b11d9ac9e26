//! A job as text: what go-workers and Pitaya write and read (cluster protocol 17).
//!
//! The text of a job is its identity: it is taken out of a list by it. When a job is put back, what is not understood
//! goes along unchanged.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::civil::utc_text;
use crate::error::{Error, Result};

/// The queue of reliable RPCs.
pub(crate) const QUEUE: &str = "rpc";

/// Executions after the first retry that go-workers grants a job that does not say.
const RETRY_MAX_DEFAULT: i64 = 25;

/// Longest job that is made, bytes.
const JOB_BYTES_MAX: usize = 8 << 20;

/// How often and when a failed job is tried again. Written into each job by whoever enqueues it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryOptions {
    /// Whether it is tried again at all.
    pub is_enabled: bool,
    /// The format's limit. Because the first failure counts as number 0, a job is run at most this and two times.
    pub max: u32,
    /// Exponent of the failure's number in the delay.
    pub exponential: u32,
    /// Added to each delay, seconds.
    pub min_delay_s: u32,
    /// Longest delay, seconds.
    pub max_delay_s: u32,
    /// Random part of the delay, seconds, times the failure's number.
    pub max_random_s: u32,
}

impl Default for RetryOptions {
    /// Those of Pitaya's documentation.
    fn default() -> Self {
        Self {
            is_enabled: true,
            max: 5,
            exponential: 2,
            min_delay_s: 0,
            max_delay_s: 10,
            max_random_s: 10,
        }
    }
}

/// A new job, in the order of go-workers.
#[derive(Serialize)]
struct NewJob<'a> {
    queue: &'a str,
    class: &'a str,
    args: NewArguments<'a>,
    jid: &'a str,
    enqueued_at: f64,
    #[serde(skip_serializing_if = "is_false")]
    retry: bool,
    #[serde(skip_serializing_if = "is_zero")]
    retry_max: u32,
    retry_options: NewRetryOptions,
    connection_options: ConnectionOptions,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NewArguments<'a> {
    route: &'a str,
    metadata: &'a Map<String, Value>,
    arg: &'a RawValue,
    reply: Map<String, Value>,
}

#[derive(Serialize)]
struct NewRetryOptions {
    exp: u32,
    min_delay: u32,
    max_delay: u32,
    max_rand: u32,
}

/// Always empty; go-workers writes it, and consumers ignore it.
#[derive(Serialize, Default)]
#[serde(rename_all = "PascalCase")]
struct ConnectionOptions {
    address: &'static str,
    password: &'static str,
    database: &'static str,
    #[serde(rename = "ProcessID")]
    process_id: &'static str,
    namespace: &'static str,
    pool_size: u32,
    pool_interval: u32,
    dial_options: Option<()>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde calls")]
fn is_false(value: &bool) -> bool {
    !value
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde calls")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// The text of a new job, and its id: 12 random bytes in hexadecimal digits.
///
/// Fails when the argument cannot be JSON or the job would have more than 8 MiB.
pub(crate) fn new_job(
    route: &str,
    metadata: &Map<String, Value>,
    argument: &impl Serialize,
    retry: RetryOptions,
) -> Result<(String, String)> {
    let argument = serde_json::value::to_raw_value(argument)?;
    let jid = format!("{:016x}{:08x}", fastrand::u64(..), fastrand::u32(..));
    let job = NewJob {
        queue: QUEUE,
        class: "",
        args: NewArguments { route, metadata, arg: &argument, reply: Map::new() },
        jid: &jid,
        enqueued_at: now_s(),
        retry: retry.is_enabled,
        retry_max: retry.max,
        retry_options: NewRetryOptions {
            exp: retry.exponential,
            min_delay: retry.min_delay_s,
            max_delay: retry.max_delay_s,
            max_rand: retry.max_random_s,
        },
        connection_options: ConnectionOptions::default(),
    };
    let text = serde_json::to_string(&job)?;
    if text.len() > JOB_BYTES_MAX {
        return Err(Error::unknown("the job is too large"));
    }
    Ok((text, jid))
}

/// A job that was taken from a queue.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    members: BTreeMap<String, Box<RawValue>>,
}

/// What a job is to do.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Arguments<'a> {
    pub(crate) route: String,
    #[serde(borrow, default)]
    pub(crate) metadata: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(crate) arg: Option<&'a RawValue>,
}

impl Job {
    /// Fails for what is no job at all; such a text can only be thrown away.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        Ok(Self { members: serde_json::from_str(text)? })
    }

    pub(crate) fn id(&self) -> String {
        self.member("jid").unwrap_or_default()
    }

    pub(crate) fn arguments(&self) -> Result<Arguments<'_>> {
        let Some(args) = self.members.get("args") else {
            return Err(Error::unknown("the job has no arguments"));
        };
        Ok(serde_json::from_str(args.get())?)
    }

    /// The text to put back after a failure and when it is due, seconds since the epoch; none when it was tried often
    /// enough. `queue` is the queue's name with the namespace, as go-workers writes it.
    pub(crate) fn failed(&self, error: &str, queue: &str, random: f64) -> Option<(String, f64)> {
        let (is_retried, max) = self.retries();
        let count: Option<i64> = self.member("retry_count");
        if !is_retried || count.unwrap_or(0) >= max {
            return None;
        }
        let now_s = now_s();
        let number = count.map_or(0, |count| count.saturating_add(1));
        let time = utc_text(now_s as u64);
        let mut members = self.members.clone();
        set(&mut members, "queue", &queue);
        set(&mut members, "error_message", &error);
        set(&mut members, "retry_count", &number);
        set(&mut members, if count.is_none() { "failed_at" } else { "retried_at" }, &time);
        let text = serde_json::to_string(&members).ok()?;
        Some((text, now_s + self.delay_s(number, random)))
    }

    /// The text to put into its queue when its time has come, and the queue's name without the namespace.
    pub(crate) fn due(&self, namespace: &str) -> Option<(String, String)> {
        let queue: String = self.member("queue")?;
        let queue = queue.strip_prefix(namespace).unwrap_or(&queue).to_owned();
        let mut members = self.members.clone();
        set(&mut members, "enqueued_at", &now_s());
        Some((serde_json::to_string(&members).ok()?, queue))
    }

    fn retries(&self) -> (bool, i64) {
        let max = self.member("retry_max");
        if let Some(is_retried) = self.member::<bool>("retry") {
            return (is_retried, max.unwrap_or(RETRY_MAX_DEFAULT));
        }
        // Sidekiq's form.
        match self.member::<i64>("retry") {
            Some(count) => (true, max.unwrap_or(count)),
            None => (false, 0),
        }
    }

    /// Whole seconds, as go-workers computes them.
    fn delay_s(&self, number: i64, random: f64) -> f64 {
        let options: Map<String, Value> = self.member("retry_options").unwrap_or_default();
        let option =
            |name: &str, default| options.get(name).and_then(Value::as_f64).unwrap_or(default);
        let power = (number as f64).powf(option("exp", 4.0));
        let drawn = (random * option("max_rand", 30.0)).floor().max(0.0) * (number as f64 + 1.0);
        let delay = power + option("min_delay", 15.0) + drawn;
        delay.min(option("max_delay", f64::INFINITY)).max(0.0).trunc()
    }

    fn member<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.members.get(name)?.get()).ok()
    }
}

fn set(members: &mut BTreeMap<String, Box<RawValue>>, name: &str, value: &impl Serialize) {
    // Texts and finite numbers can always be JSON.
    if let Ok(value) = serde_json::value::to_raw_value(value) {
        members.insert(name.to_owned(), value);
    }
}

/// Seconds since the epoch.
pub(crate) fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const RETRY: RetryOptions = RetryOptions {
        is_enabled: true,
        max: 2,
        exponential: 5,
        min_delay_s: 10,
        max_delay_s: 10,
        max_random_s: 0,
    };

    fn metadata() -> Map<String, Value> {
        [("n".to_owned(), json!(5)), ("stack".to_owned(), json!("green"))].into_iter().collect()
    }

    #[test]
    fn a_new_job_has_the_members_of_pitayas_jobs_in_their_order() {
        let argument = json!({"id": 9_007_199_254_740_993_i64, "uid": "u1"});
        let (text, jid) = new_job("room.rem.ok", &metadata(), &argument, RETRY).unwrap();
        let (before, after) = text.split_once(r#""enqueued_at":"#).unwrap();
        assert_eq!(
            before,
            format!(
                r#"{{"queue":"rpc","class":"","args":{{"Route":"room.rem.ok","Metadata":{{"n":5,"stack":"green"}},"Arg":{{"id":9007199254740993,"uid":"u1"}},"Reply":{{}}}},"jid":"{jid}","#
            )
        );
        assert!(jid.len() == 24 && jid.bytes().all(|byte| byte.is_ascii_hexdigit()), "{jid}");
        let rest = after.split_once(',').unwrap().1;
        assert_eq!(
            rest,
            r#""retry":true,"retry_max":2,"retry_options":{"exp":5,"min_delay":10,"max_delay":10,"max_rand":0},"connection_options":{"Address":"","Password":"","Database":"","ProcessID":"","Namespace":"","PoolSize":0,"PoolInterval":0,"DialOptions":null}}"#
        );
    }

    #[test]
    fn a_job_without_retries_leaves_the_members_out() {
        let never = RetryOptions { is_enabled: false, max: 0, ..RETRY };
        let (text, _) = new_job("a.b.c", &Map::new(), &json!(null), never).unwrap();
        assert!(!text.contains("\"retry\"") && !text.contains("retry_max"), "{text}");
        assert!(Job::parse(&text).unwrap().failed("e", "rpc", 0.0).is_none());
    }

    #[test]
    fn a_limit_of_two_means_four_executions() {
        let (text, _) = new_job("a.b.c", &Map::new(), &json!({}), RETRY).unwrap();
        let mut job = Job::parse(&text).unwrap();
        let mut executions = 1;
        while let Some((text, due_s)) = job.failed("broken", "ns:rpc", 0.9) {
            let delay_s = due_s - now_s();
            assert!((9.0..=10.0).contains(&delay_s), "{delay_s}");
            job = Job::parse(&text).unwrap();
            executions += 1;
        }
        assert_eq!(executions, 4);
        assert_eq!(job.member::<i64>("retry_count"), Some(2));
        assert_eq!(job.member::<String>("error_message").unwrap(), "broken");
        assert_eq!(job.member::<String>("queue").unwrap(), "ns:rpc");
        let failed_at: String = job.member("failed_at").unwrap();
        assert!(failed_at.ends_with(" UTC") && failed_at.len() == 23, "{failed_at}");
        let (text, queue) = job.due("ns:").unwrap();
        assert_eq!(queue, "rpc");
        assert!(Job::parse(&text).unwrap().arguments().is_ok());
    }

    #[test]
    fn delays_follow_go_workers() {
        let job = |options: Value| {
            Job::parse(&json!({"retry": true, "retry_options": options}).to_string()).unwrap()
        };
        let usual = job(json!({}));
        assert!((usual.delay_s(0, 0.0) - 15.0).abs() < 1e-9);
        assert!((usual.delay_s(2, 0.5) - (16.0 + 15.0 + 45.0)).abs() < 1e-9);
        let bounded = job(json!({"exp": 5, "min_delay": 10, "max_delay": 10, "max_rand": 0}));
        assert!((bounded.delay_s(3, 0.99) - 10.0).abs() < 1e-9);
        let huge = job(json!({"exp": 20, "max_delay": 7}));
        assert!((huge.delay_s(i64::MAX, 0.0) - 7.0).abs() < 1e-9);
    }

    #[test]
    fn numbers_and_unknown_members_survive_being_put_back() {
        let text = r#"{"retry":5,"args":{"Route":"a.b.c","Metadata":null,"Arg":{"id":9007199254740993,"f":1.0}},"later":{"x":1e2}}"#;
        let job = Job::parse(text).unwrap();
        let (again, _) = job.failed("e", "rpc", 0.0).unwrap();
        assert!(again.contains(r#""Arg":{"id":9007199254740993,"f":1.0}"#), "{again}");
        assert!(again.contains(r#""later":{"x":1e2}"#), "{again}");
        let arguments = job.arguments().unwrap();
        assert_eq!(arguments.route, "a.b.c");
        assert_eq!(arguments.arg.unwrap().get(), r#"{"id":9007199254740993,"f":1.0}"#);
        assert!(Job::parse("[]").is_err() && Job::parse("{").is_err());
        assert!(Job::parse("{}").unwrap().arguments().is_err());
    }
}
