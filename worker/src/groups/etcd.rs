//! Groups in etcd, shared by all servers that use the same prefix, Go servers among them (cluster protocol 16).
//!
//! ```text
//! {prefix}groups/{name}              = ""     on the group's lease when it has a time to live
//! {prefix}groups/{name}/uids/{uid}   = ""     on the same lease, so that all of it ends together
//! ```
//!
//! Every change is one transaction, and nothing is kept here, so that losing etcd costs the calls of that time and
//! nothing else. A change whose answer is lost may have been made.

use std::time::Duration;

use shared::cluster::etcd::{
    Client, Compare, CompareValue, DeleteRangeRequest, EtcdError, KeyValue, PutRequest,
    RangeRequest, RequestOp, ResponseOp, StoreOptions, TxnRequest, TxnResponse, prefix_end,
};
use shared::config::Config;
use shared::error::code;

use crate::error::{Error, Result};

/// Members that are read at once. A key has about a hundred bytes, and no answer should hold up others for long.
const PAGE_MEMBERS: i64 = 10_000;

/// How often a member is added anew to a group that was made again meanwhile.
const ADD_ATTEMPTS: usize = 3;

/// How to reach the etcd of the groups.
#[derive(Clone, Debug)]
pub struct EtcdGroupsOptions {
    /// Where they are kept.
    pub store: StoreOptions,
    /// Limit of one operation.
    pub transaction_timeout: Duration,
}

impl EtcdGroupsOptions {
    /// What the configuration says below `pitaya.groups.etcd`.
    pub fn new(config: &Config) -> Self {
        Self {
            store: StoreOptions::new(config, "pitaya.groups.etcd"),
            transaction_timeout: config.duration("pitaya.groups.etcd.transactiontimeout"),
        }
    }
}

pub(crate) struct EtcdGroups {
    client: Client,
    prefix: String,
    limit: Duration,
}

impl EtcdGroups {
    /// Fails for endpoints that cannot be. Must be called inside a tokio runtime.
    pub(crate) fn new(options: &EtcdGroupsOptions) -> Result<Self> {
        // A share of the limit for each endpoint, so that one that hangs leaves time for the next, and a little less
        // than the whole, so that the client sees which one it was.
        let (store, limit) = (&options.store, options.transaction_timeout);
        let shares = store.endpoints.len().clamp(1, 3) as f64;
        let client = Client::new(store, limit.mul_f64(0.9 / shares))?;
        let prefix = store.prefix.clone();
        Ok(Self { client, prefix, limit })
    }

    pub(crate) async fn create(&self, name: &str, ttl: Option<Duration>) -> Result<()> {
        let Some(ttl) = ttl else { return self.create_on(name, 0).await };
        // Whole seconds, as in Pitaya; etcd takes at least one.
        let ttl_s = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let lease = self.bounded(self.client.lease_grant(ttl_s)).await?.id;
        let created = self.create_on(name, lease).await;
        if created.is_err() {
            // Pitaya leaves the lease behind, one for each try.
            let _ = self.bounded(self.client.lease_revoke(lease)).await;
        }
        created
    }

    async fn create_on(&self, name: &str, lease: i64) -> Result<()> {
        let key = self.group_key(name);
        let put =
            PutRequest { key: key.clone(), value: Vec::new(), lease, ..PutRequest::default() };
        let answer = self.txn(vec![is_missing(key)], vec![RequestOp::Put(put)], vec![]).await?;
        if answer.succeeded { Ok(()) } else { Err(Error::unknown("group already exists")) }
    }

    pub(crate) async fn add(&self, name: &str, uid: &str) -> Result<()> {
        for _ in 0..ADD_ATTEMPTS {
            if let Some(outcome) = self.try_add(name, uid).await? {
                return outcome;
            }
        }
        Err(not_found())
    }

    /// None when the group was deleted or made again between the two steps.
    async fn try_add(&self, name: &str, uid: &str) -> Result<Option<Result<()>>> {
        let (group, member) = (self.group_key(name), self.member_key(name, uid));
        let found = self.group(name).await?;
        let is_same = Compare::equal(group, CompareValue::CreateRevision(found.create_revision));
        let put = PutRequest {
            key: member.clone(),
            value: Vec::new(),
            lease: found.lease,
            ..PutRequest::default()
        };
        let look = RangeRequest { key: member.clone(), count_only: true, ..Default::default() };
        let conditions = vec![is_same, is_missing(member)];
        let answer = self
            .bounded(self.client.txn(TxnRequest::new(
                conditions,
                vec![RequestOp::Put(put)],
                vec![RequestOp::Range(look)],
            )))
            .await;
        match answer {
            Ok(answer) if answer.succeeded => Ok(Some(Ok(()))),
            Ok(answer) => {
                let exists = || Err(Error::unknown("member already exists in group"));
                Ok((count_of(answer) > 0).then(exists))
            }
            // The lease ended with the group.
            Err(Failure::Etcd(error)) if error.is_lease_lost() => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    pub(crate) async fn remove(&self, name: &str, uid: &str) -> Result<()> {
        let key = self.member_key(name, uid);
        let delete = DeleteRangeRequest { key: key.clone(), range_end: Vec::new() };
        let answer =
            self.txn(vec![Compare::exists(key)], vec![RequestOp::DeleteRange(delete)], vec![]);
        if answer.await?.succeeded {
            Ok(())
        } else {
            Err(Error::unknown("member not found in the group"))
        }
    }

    pub(crate) async fn remove_all(&self, name: &str) -> Result<()> {
        self.in_group(name, vec![self.delete_members(name)]).await.map(drop)
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        let key = self.group_key(name);
        let look = RangeRequest { key: key.clone(), ..Default::default() };
        let group = DeleteRangeRequest { key, range_end: Vec::new() };
        let steps =
            vec![RequestOp::Range(look), self.delete_members(name), RequestOp::DeleteRange(group)];
        let answer = self.in_group(name, steps).await?;
        let lease =
            first_range(answer).and_then(|(mut found, _)| found.pop()).map_or(0, |kv| kv.lease);
        if lease != 0 {
            // Nothing hangs on it any more; left alone it would expire by itself.
            let _ = self.bounded(self.client.lease_revoke(lease)).await;
        }
        Ok(())
    }

    /// In the order of the keys. Members that are no text are left out: they could not be pushed to.
    pub(crate) async fn members(&self, name: &str) -> Result<Vec<String>> {
        let prefix = self.members_prefix(name);
        let page = |key: Vec<u8>, revision| RangeRequest {
            key,
            range_end: prefix_end(&prefix),
            limit: PAGE_MEMBERS,
            revision,
            keys_only: true,
            ..Default::default()
        };
        let answer = self.in_group(name, vec![RequestOp::Range(page(prefix.clone(), 0))]).await?;
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        let (mut keys, mut has_more) = first_range(answer).unwrap_or_default();
        let mut members = Vec::with_capacity(keys.len());
        loop {
            let last = keys.last().map(|kv| kv.key.clone());
            members.extend(keys.iter().filter_map(|kv| member_of(&kv.key, &prefix)));
            let (true, Some(mut next)) = (has_more, last) else { return Ok(members) };
            // The smallest key behind it. All pages show the same moment.
            next.push(0);
            let answer = self.bounded(self.client.range(page(next, revision))).await?;
            (keys, has_more) = (answer.kvs, answer.more);
        }
    }

    pub(crate) async fn contains(&self, name: &str, uid: &str) -> Result<bool> {
        let key = self.member_key(name, uid);
        let look = RangeRequest { key, count_only: true, ..Default::default() };
        Ok(count_of(self.in_group(name, vec![RequestOp::Range(look)]).await?) > 0)
    }

    /// Zero for a group that does not exist, as in Pitaya.
    pub(crate) async fn count(&self, name: &str) -> Result<usize> {
        let key = self.members_prefix(name);
        let range_end = prefix_end(&key);
        let look = RangeRequest { key, range_end, count_only: true, ..Default::default() };
        let answer = self.bounded(self.client.range(look)).await?;
        Ok(usize::try_from(answer.count).unwrap_or(0))
    }

    pub(crate) async fn renew_ttl(&self, name: &str) -> Result<()> {
        let lease = self.group(name).await?.lease;
        if lease == 0 {
            return Err(Error::unknown("etcd lease not found in group"));
        }
        match self.bounded(self.client.lease_keep_alive(lease)).await {
            Err(Failure::Etcd(error)) if error.is_lease_lost() => Err(not_found()),
            outcome => Ok(outcome.map(drop)?),
        }
    }

    async fn group(&self, name: &str) -> Result<KeyValue> {
        let look = RangeRequest { key: self.group_key(name), ..Default::default() };
        let mut answer = self.bounded(self.client.range(look)).await?;
        answer.kvs.pop().ok_or_else(not_found)
    }

    /// Runs the steps if the group exists.
    async fn in_group(&self, name: &str, steps: Vec<RequestOp>) -> Result<TxnResponse> {
        let exists = Compare::exists(self.group_key(name));
        let answer = self.txn(vec![exists], steps, vec![]).await?;
        if answer.succeeded { Ok(answer) } else { Err(not_found()) }
    }

    async fn txn(
        &self,
        conditions: Vec<Compare>,
        success: Vec<RequestOp>,
        failure: Vec<RequestOp>,
    ) -> Result<TxnResponse> {
        let request = TxnRequest::new(conditions, success, failure);
        Ok(self.bounded(self.client.txn(request)).await?)
    }

    /// The limit holds for the whole call, however many endpoints are tried.
    async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, EtcdError>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.limit, call).await {
            Ok(outcome) => outcome.map_err(Failure::Etcd),
            Err(_) => Err(Failure::TimedOut),
        }
    }

    fn delete_members(&self, name: &str) -> RequestOp {
        let key = self.members_prefix(name);
        let range_end = prefix_end(&key);
        RequestOp::DeleteRange(DeleteRangeRequest { key, range_end })
    }

    fn group_key(&self, name: &str) -> Vec<u8> {
        format!("{}groups/{name}", self.prefix).into_bytes()
    }

    fn members_prefix(&self, name: &str) -> Vec<u8> {
        format!("{}groups/{name}/uids/", self.prefix).into_bytes()
    }

    fn member_key(&self, name: &str, uid: &str) -> Vec<u8> {
        format!("{}groups/{name}/uids/{uid}", self.prefix).into_bytes()
    }
}

/// Why a call to etcd gave nothing.
enum Failure {
    Etcd(EtcdError),
    TimedOut,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let text = match failure {
            Failure::Etcd(error) => format!("groups: {error}"),
            Failure::TimedOut => "groups: etcd did not answer in time".to_owned(),
        };
        Self::new(code::INTERNAL, text)
    }
}

fn not_found() -> Error {
    Error::unknown("group not found")
}

fn is_missing(key: Vec<u8>) -> Compare {
    Compare::equal(key, CompareValue::CreateRevision(0))
}

fn member_of(key: &[u8], prefix: &[u8]) -> Option<String> {
    String::from_utf8(key.strip_prefix(prefix)?.to_vec()).ok()
}

/// Keys of the first range of a transaction, and whether there are more.
fn first_range(answer: TxnResponse) -> Option<(Vec<KeyValue>, bool)> {
    answer.into_responses().find_map(|response| match response {
        ResponseOp::Range(range) => Some((range.kvs, range.more)),
        _ => None,
    })
}

fn count_of(answer: TxnResponse) -> i64 {
    let counts = answer.into_responses().filter_map(|response| match response {
        ResponseOp::Range(range) => Some(range.count),
        _ => None,
    });
    counts.sum()
}
