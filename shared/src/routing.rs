//! How requests find their server, type by type: a policy of [`crate::router`], or a function of the application.
//!
//! Policies come from the configuration or from code, functions only from code. What is written for one type counts
//! before what is written for all. Nothing here chooses; the invariant is that a [`Routing`] in use never changes.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::error::{Error, code};
use crate::router::Policy;
use crate::server::{Server, ServerTable};

/// The name in the configuration that stands for all types without an entry of their own.
pub const ALL_TYPES: &str = "default";

impl Policy {
    /// All policies with their names in the configuration.
    pub const NAMES: [(&str, Self); 5] = [
        ("random", Self::Random),
        ("round-robin", Self::RoundRobin),
        ("least-in-flight", Self::LeastInFlight),
        ("consistent-hash", Self::ConsistentHash),
        ("sticky", Self::Sticky),
    ];

    /// The policy of this name, in any letter case.
    pub fn of_name(name: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, policy)| *policy)
    }

    /// Whether a request belongs to one server and waits for it, rather than to whoever has room.
    pub fn is_faithful(self) -> bool {
        matches!(self, Self::ConsistentHash | Self::Sticky)
    }
}

/// The request for which a function chooses a server.
#[derive(Clone, Copy, Debug)]
pub struct RouteRequest<'a> {
    /// The full route, `serverType.service.method`.
    pub route: &'a str,
    /// What the client or the calling server sends, decoded by nobody yet.
    pub payload: &'a [u8],
    /// The session of the client; none for a call that no client has caused.
    pub session: Option<RouteSession<'a>>,
    /// The servers of the route's type, sorted by id; never empty.
    pub servers: &'a [Arc<Server>],
    /// All servers: the one chosen need not be of the type.
    pub table: &'a ServerTable,
}

/// The session behind a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteSession<'a> {
    /// Its id on its gateway.
    pub id: i64,
    /// The bound user, or empty.
    pub uid: &'a str,
    /// Its data: a JSON object, or empty.
    pub data: &'a [u8],
}

/// Chooses the server of a request. Runs in the middle of forwarding, on a thread that serves others as well: it must
/// not wait for anything. An error is the answer to the request.
pub type RouteFunction = Arc<dyn Fn(&RouteRequest<'_>) -> Result<Arc<Server>, Error> + Send + Sync>;

/// How the requests to one type of server find theirs.
#[derive(Clone)]
pub enum Rule {
    /// By a policy.
    Policy(Policy),
    /// By a function of the application.
    Function(RouteFunction),
}

impl fmt::Debug for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(policy) => policy.fmt(formatter),
            Self::Function(_) => formatter.write_str("Function"),
        }
    }
}

impl From<Policy> for Rule {
    fn from(policy: Policy) -> Self {
        Self::Policy(policy)
    }
}

impl<F> From<F> for Rule
where
    F: Fn(&RouteRequest<'_>) -> Result<Arc<Server>, Error> + Send + Sync + 'static,
{
    fn from(function: F) -> Self {
        Self::Function(Arc::new(function))
    }
}

/// The rules of a process.
#[derive(Clone, Debug)]
pub struct Routing {
    by_type: BTreeMap<String, Rule>,
    others: Rule,
}

impl Routing {
    /// One policy for all types.
    pub fn new(policy: Policy) -> Self {
        Self { by_type: BTreeMap::new(), others: Rule::Policy(policy) }
    }

    /// Another rule for one type; it replaces an earlier one.
    pub fn set(&mut self, server_type: &str, rule: impl Into<Rule>) {
        self.by_type.insert(server_type.to_owned(), rule.into());
    }

    /// A rule for one type that has none yet: what code says below what the configuration says.
    pub fn suggest(&mut self, server_type: &str, rule: impl Into<Rule>) {
        self.by_type.entry(server_type.to_owned()).or_insert_with(|| rule.into());
    }

    /// Takes over `type=policy` pairs; [`ALL_TYPES`] stands for all types without an entry.
    ///
    /// # Errors
    /// The first name that is not one of [`Policy::NAMES`], in words. Nothing is changed then.
    pub fn set_all(&mut self, pairs: &BTreeMap<String, String>) -> Result<(), String> {
        let mut changed = self.clone();
        for (server_type, name) in pairs {
            let policy = Policy::of_name(name)
                .ok_or_else(|| format!("{name:?} is not a way to choose for {server_type:?}"))?;
            if server_type == ALL_TYPES {
                changed.others = Rule::Policy(policy);
            } else {
                changed.set(server_type, policy);
            }
        }
        *self = changed;
        Ok(())
    }

    /// The rule for this type. Does not allocate.
    pub fn of(&self, server_type: &str) -> &Rule {
        self.by_type.get(server_type).unwrap_or(&self.others)
    }
}

/// Asks a function; its panic is `PIT-500`.
///
/// # Errors
/// Those of the function.
pub fn ask(function: &RouteFunction, request: &RouteRequest<'_>) -> Result<Arc<Server>, Error> {
    let answer = catch_unwind(AssertUnwindSafe(|| function(request)));
    answer.unwrap_or_else(|_| {
        Err(Error::new(code::INTERNAL, "the routing function of the application panicked"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn policy(routing: &Routing, server_type: &str) -> Policy {
        match routing.of(server_type) {
            Rule::Policy(policy) => *policy,
            Rule::Function(_) => panic!("a function"),
        }
    }

    #[test]
    fn one_type_counts_before_all_types() {
        let mut routing = Routing::new(Policy::Random);
        let given = pairs(&[("room", "Sticky"), ("default", "round-robin")]);
        routing.set_all(&given).unwrap();
        assert_eq!(policy(&routing, "room"), Policy::Sticky);
        assert_eq!(policy(&routing, "chat"), Policy::RoundRobin);
        routing.suggest("room", Policy::Random);
        assert_eq!(policy(&routing, "room"), Policy::Sticky);
        routing.set("chat", Policy::ConsistentHash);
        assert_eq!(policy(&routing, "chat"), Policy::ConsistentHash);
    }

    #[test]
    fn an_unknown_name_changes_nothing() {
        let mut routing = Routing::new(Policy::Random);
        let error = routing.set_all(&pairs(&[("a", "sticky"), ("b", "best")])).unwrap_err();
        assert!(error.contains("best"), "{error}");
        assert_eq!(policy(&routing, "a"), Policy::Random);
    }

    #[test]
    fn every_policy_has_a_name() {
        for (name, policy) in Policy::NAMES {
            assert_eq!(Policy::of_name(&name.to_uppercase()), Some(policy));
        }
        assert_eq!(Policy::of_name(""), None);
    }

    #[test]
    fn a_function_that_panics_is_an_internal_error() {
        let rule: Rule = (|_: &RouteRequest<'_>| panic!("no")).into();
        let Rule::Function(function) = rule else { panic!("not a function") };
        let table = ServerTable::default();
        let request = RouteRequest {
            route: "a.b.c",
            payload: b"",
            session: None,
            servers: &[],
            table: &table,
        };
        assert_eq!(ask(&function, &request).unwrap_err().code, code::INTERNAL);
    }
}
