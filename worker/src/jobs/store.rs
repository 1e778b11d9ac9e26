//! The lists in Redis, with go-workers' names (cluster protocol 17), and the steps that must not come apart.
//!
//! ```text
//! {ns:}queues                            set: names of queues
//! {ns:}queue:rpc                         list: waiting, new ones left, taken from the right
//! {ns:}queue:rpc:{process}:inprogress    list: being done by {process}
//! {ns:}goretry  {ns:}schedule            sorted sets by due time in seconds
//! {ns:}stat:processed  {ns:}stat:failed  counters, also for each day
//! {ns:}dragonfruit:consumers             set: processes of ours; go-workers knows nothing of it
//! {ns:}dragonfruit:alive:{process}       expires when the process does not say that it lives
//! ```
//!
//! What takes a job out of one list and puts it, or what follows from it, elsewhere is one script or transaction, so
//! that a crash between two steps loses nothing.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{
    Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo, RedisError, RedisResult,
};

use super::civil::utc_day;
use super::job::{QUEUE, now_s};

/// How long one look for a job may wait inside Redis, seconds. Less than an answer may take.
const FETCH_WAIT_S: u64 = 1;

/// After so long without a sign of life a process's jobs are given to others, seconds.
const ALIVE_S: u64 = 60;

/// Limit of one try to connect, and of one answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes a job that is done out of the list in hand.
/// Keys: in progress, counter, counter of the day. Arguments: the job.
const DONE: &str = "redis.call('INCR', KEYS[2]) redis.call('INCR', KEYS[3]) \
                    return redis.call('LREM', KEYS[1], -1, ARGV[1])";

/// The same for one that failed and is tried again, unless somebody else has taken it over.
/// Keys: as above, retries. Arguments: the job, when it is due, its new text.
const RETRY: &str = "redis.call('INCR', KEYS[2]) redis.call('INCR', KEYS[3]) \
                     local left = redis.call('LREM', KEYS[1], -1, ARGV[1]) \
                     if left > 0 then redis.call('ZADD', KEYS[4], ARGV[2], ARGV[3]) end \
                     return left";

/// Puts a job whose time has come into its queue, if nobody else did.
/// Keys: sorted set, queue. Arguments: the old text, the new one.
const DUE: &str = "if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then \
                   redis.call('LPUSH', KEYS[2], ARGV[2]) return 1 end return 0";

/// Gives what a dead process had in hand back, to be taken next, and forgets the process; unless it lives.
/// Keys: sign of life, in progress, queue, consumers. Arguments: the process.
const REAP: &str = "if redis.call('EXISTS', KEYS[1]) == 1 then return -1 end \
                    local count = 0 \
                    local job = redis.call('LPOP', KEYS[2]) \
                    while job do \
                    redis.call('RPUSH', KEYS[3], job) \
                    count = count + 1 job = redis.call('LPOP', KEYS[2]) end \
                    redis.call('SREM', KEYS[4], ARGV[1]) \
                    return count";

/// Numbers of jobs, of all processes together.
pub(crate) struct Levels {
    pub(crate) processed: u64,
    pub(crate) failed: u64,
    /// That wait to be tried again.
    pub(crate) retries: u64,
    /// That wait in the queue.
    pub(crate) waiting: u64,
}

/// Where jobs are kept.
#[derive(Clone)]
pub(crate) struct Store {
    connection: ConnectionManager,
    /// Empty, or ending in a colon.
    pub(crate) namespace: String,
    /// This process's name in Redis.
    pub(crate) process: String,
}

impl Store {
    /// A store that connects with its first command. Fails for an address that cannot be.
    pub(crate) fn new(
        address: &str,
        password: &str,
        namespace: &str,
        process: &str,
    ) -> RedisResult<Self> {
        let invalid = || RedisError::from((redis::ErrorKind::InvalidClientConfig, "not host:port"));
        let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port.parse().map_err(|_| invalid())?;
        let mut settings = RedisConnectionInfo::default();
        if !password.is_empty() {
            settings = settings.set_password(password);
        }
        let info = ConnectionAddr::Tcp(host, port).into_connection_info()?;
        let client = Client::open(info.set_redis_settings(settings))?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT))
            .set_number_of_retries(1);
        let connection = ConnectionManager::new_lazy_with_config(client, config)?;
        let namespace = if namespace.is_empty() { String::new() } else { format!("{namespace}:") };
        Ok(Self { connection, namespace, process: process.to_owned() })
    }

    pub(crate) async fn enqueue(&self, text: &str) -> RedisResult<()> {
        redis::pipe()
            .atomic()
            .sadd(self.key("queues"), QUEUE)
            .ignore()
            .lpush(self.queue(), text)
            .ignore()
            .query_async(&mut self.connection.clone())
            .await
    }

    /// The oldest job, which is in hand from then on; none when there was none for a second.
    pub(crate) async fn fetch(&self) -> RedisResult<Option<String>> {
        redis::cmd("BRPOPLPUSH")
            .arg(self.queue())
            .arg(self.in_progress(&self.process))
            .arg(FETCH_WAIT_S)
            .query_async(&mut self.connection.clone())
            .await
    }

    /// What this process has in hand, the oldest last.
    pub(crate) async fn in_hand(&self) -> RedisResult<Vec<String>> {
        redis::cmd("LRANGE")
            .arg(self.in_progress(&self.process))
            .arg(0)
            .arg(-1)
            .query_async(&mut self.connection.clone())
            .await
    }

    /// A job ended well, or badly and for good.
    pub(crate) async fn done(&self, text: &str, counter: &str) -> RedisResult<()> {
        let [total, day] = self.counters(counter);
        let keys = [self.in_progress(&self.process), total, day];
        self.run(DONE, &keys, &[text]).await.map(drop)
    }

    /// A job failed and is tried again.
    pub(crate) async fn retry(&self, text: &str, again: &str, due_s: f64) -> RedisResult<()> {
        let [total, day] = self.counters("failed");
        let keys = [self.in_progress(&self.process), total, day, self.key("goretry")];
        self.run(RETRY, &keys, &[text, &due_s.to_string(), again]).await.map(drop)
    }

    /// The first job of a sorted set that is due.
    pub(crate) async fn first_due(&self, set: &str) -> RedisResult<Option<String>> {
        let found: Vec<String> = redis::cmd("ZRANGEBYSCORE")
            .arg(self.key(set))
            .arg("-inf")
            .arg(now_s())
            .arg("LIMIT")
            .arg(0)
            .arg(1)
            .query_async(&mut self.connection.clone())
            .await?;
        Ok(found.into_iter().next())
    }

    /// Moves a due job into its queue; `again` is its text there.
    pub(crate) async fn put_due(
        &self,
        set: &str,
        text: &str,
        queue: &str,
        again: &str,
    ) -> RedisResult<()> {
        let keys = [self.key(set), self.key(&format!("queue:{queue}"))];
        self.run(DUE, &keys, &[text, again]).await.map(drop)
    }

    /// Takes out of a sorted set what is no job.
    pub(crate) async fn forget(&self, set: &str, text: &str) -> RedisResult<()> {
        redis::cmd("ZREM")
            .arg(self.key(set))
            .arg(text)
            .query_async(&mut self.connection.clone())
            .await
    }

    /// How many jobs there are of each kind.
    pub(crate) async fn levels(&self) -> RedisResult<Levels> {
        let (processed, failed, retries, waiting): (Option<u64>, Option<u64>, u64, u64) =
            redis::pipe()
                .get(self.key("stat:processed"))
                .get(self.key("stat:failed"))
                .zcard(self.key("goretry"))
                .llen(self.queue())
                .query_async(&mut self.connection.clone())
                .await?;
        let (processed, failed) = (processed.unwrap_or(0), failed.unwrap_or(0));
        Ok(Levels { processed, failed, retries, waiting })
    }

    /// Says that this process lives.
    pub(crate) async fn live(&self) -> RedisResult<()> {
        redis::pipe()
            .atomic()
            .set_ex(self.alive(&self.process), 1, ALIVE_S)
            .ignore()
            .sadd(self.key("dragonfruit:consumers"), &self.process)
            .ignore()
            .query_async(&mut self.connection.clone())
            .await
    }

    /// Says that this process does not live any more, and gives back what it has in hand.
    pub(crate) async fn leave(&self) -> RedisResult<i64> {
        let mut connection = self.connection.clone();
        let alive = self.alive(&self.process);
        let _: () = redis::cmd("DEL").arg(alive).query_async(&mut connection).await?;
        self.reap(&self.process).await
    }

    /// Gives back what dead processes of ours had in hand; returns how many jobs.
    pub(crate) async fn reap_dead(&self) -> RedisResult<i64> {
        let all: Vec<String> = redis::cmd("SMEMBERS")
            .arg(self.key("dragonfruit:consumers"))
            .query_async(&mut self.connection.clone())
            .await?;
        let mut jobs = 0;
        for process in all.iter().filter(|process| **process != self.process) {
            jobs += self.reap(process).await?.max(0);
        }
        Ok(jobs)
    }

    async fn reap(&self, process: &str) -> RedisResult<i64> {
        let keys = [
            self.alive(process),
            self.in_progress(process),
            self.queue(),
            self.key("dragonfruit:consumers"),
        ];
        self.run(REAP, &keys, &[process]).await
    }

    async fn run(&self, script: &str, keys: &[String], arguments: &[&str]) -> RedisResult<i64> {
        redis::cmd("EVAL")
            .arg(script)
            .arg(keys.len())
            .arg(keys)
            .arg(arguments)
            .query_async(&mut self.connection.clone())
            .await
    }

    fn counters(&self, name: &str) -> [String; 2] {
        let day = utc_day(now_s() as u64);
        [self.key(&format!("stat:{name}")), self.key(&format!("stat:{name}:{day}"))]
    }

    fn queue(&self) -> String {
        self.key(&format!("queue:{QUEUE}"))
    }

    fn in_progress(&self, process: &str) -> String {
        format!("{}:{process}:inprogress", self.queue())
    }

    fn alive(&self, process: &str) -> String {
        self.key(&format!("dragonfruit:alive:{process}"))
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.namespace)
    }
}
