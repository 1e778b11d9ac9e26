//! Upkeep: what an operator changes while the gateway runs (configuration, bans), and what the process uses meanwhile.
//!
//! Rules and bans are snapshots that never change; a change makes new ones and posts them to every reactor. The invariant
//! of a reload: everything that was read is good and takes effect, or nothing is changed.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use shared::bans::BanList;
use shared::cluster::ban_keeper::{BanHandle, BanKeeper};
use shared::cluster::etcd::EtcdError;
use shared::config::{Change, Config, Renewal, Sources};
use shared::routing::Routing;

use super::plan::{GatewayKind, Plan, rules};
use crate::allowance;
use crate::limits::Limits;
use crate::logging::LogLevel;
use crate::meter::Meters;
use crate::rules::Rules;
use crate::tls::{Notice, Watch};

/// Of what the process may use: accepting pauses at so many hundredths, and goes on below so many.
const SCARCE: usize = 95;
const ENOUGH: usize = 90;

/// What became of a reload: what has changed, or every mistake.
pub type Reloaded = Result<Renewal, Vec<String>>;

/// What changes while the gateway runs.
pub struct Upkeep {
    config: Config,
    sources: Option<Sources>,
    log: Option<LogLevel>,
    kind: GatewayKind,
    rules: Arc<Rules>,
    bans: BanHandle,
    limits: Arc<Limits>,
    process_bytes: usize,
    certificate: Watch,
}

impl Upkeep {
    /// Takes over what the plan says, and starts the keeper of bans on the runtime that calls this; the keeper ends when
    /// all its handles are gone.
    ///
    /// Errors: etcd's endpoints cannot be read.
    pub fn start(plan: &Plan, limits: Arc<Limits>) -> Result<Self, EtcdError> {
        let store = plan.cluster.as_ref().map(|cluster| &cluster.discovery.store);
        let (keeper, bans) = BanKeeper::new(store)?;
        // It has no other owner than its handles, and nothing that needs to be waited for.
        tokio::spawn(keeper.run());
        Ok(Self {
            config: plan.config.clone(),
            sources: plan.sources.clone(),
            log: plan.log.clone(),
            kind: plan.kind.clone(),
            rules: plan.rules.clone(),
            bans,
            limits,
            process_bytes: allowance::process_bytes(&plan.config),
            certificate: Watch::default(),
        })
    }

    /// The handle of the bans, for the port for administrators.
    pub fn bans(&self) -> BanHandle {
        self.bans.clone()
    }

    /// Waits for a change of the bans. May be dropped at any time.
    pub async fn bans_changed(&mut self) -> Arc<BanList> {
        match self.bans.changed().await {
            Some(list) => Arc::new(list),
            None => std::future::pending().await,
        }
    }

    /// Reads the configuration and the certificates again; returns what the reactors are to go by from now on.
    ///
    /// Errors: every mistake; nothing has changed then.
    pub fn reload(&mut self) -> Result<(Arc<Rules>, Renewal), Vec<String>> {
        let Some(sources) = &self.sources else {
            return Err(vec![
                "this gateway was not configured from files that could be read again".into(),
            ]);
        };
        let texts = |errors: Vec<_>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        let newer = sources.load().map_err(texts)?;
        let (config, renewal) = self.config.renewed(&newer);
        let mut mistakes = Vec::new();
        let level = config.string("pitaya.log.level");
        let filter = LogLevel::parse(level).map_err(|error| mistakes.push(error)).ok();
        // Functions of the application stay, and with them all of the choice.
        let routing = Routing::clone(&self.rules.routing);
        let renewed = rules(&config, &self.kind, routing, &mut mistakes);
        let renewed = renewed.filter(|_| mistakes.is_empty()).ok_or_else(|| mistakes.clone())?;
        let renewed = Arc::new(self.rules.renewed(renewed)?);
        if let (Some(log), Some(filter)) = (&self.log, filter) {
            log.set(filter).map_err(|error| vec![error])?;
        }
        self.process_bytes = allowance::process_bytes(&config);
        self.config = config;
        self.rules = renewed.clone();
        self.certificate.forget();
        Ok((renewed, renewal))
    }

    /// Looks whether the process comes close to what it may use; new connections wait then.
    pub fn look_at_memory(&self) {
        let Some(resident_bytes) = allowance::resident_bytes() else { return };
        let hundredths = resident_bytes / (self.process_bytes / 100).max(1);
        let bound = if self.limits.memory.is_scarce() { ENOUGH } else { SCARCE };
        let is_scarce = hundredths >= bound;
        let was_scarce = self.limits.memory.set_scarce(is_scarce);
        if is_scarce && !was_scarce {
            tracing::warn!(resident_bytes, "memory is scarce; new connections have to wait");
        } else if was_scarce && !is_scarce {
            tracing::info!(resident_bytes, "there is enough memory again");
        }
        if is_scarce {
            allowance::give_back();
        }
    }

    /// Looks when the certificate for clients ends, if there is one.
    pub fn look_at_certificate(&mut self, meters: &Meters) {
        let tls = self.rules.tls.as_ref();
        let Some(ends_at_s) = tls.and_then(|tls| tls.certificates.ends_at_s()) else { return };
        meters.set_certificate_end(ends_at_s);
        // A clock before 1970 is no clock; it must not make every certificate look good.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let warning_days = self.config.size("pitaya.gateway.tls.expirydays");
        match self.certificate.look(ends_at_s, since_1970.as_secs() as i64, warning_days) {
            Some(Notice::EndsSoon { days }) => {
                tracing::warn!(days, "the certificate for clients ends soon; renew it and reload");
            }
            Some(Notice::Ended) => tracing::error!(
                "the certificate for clients has ended; they refuse it until it is renewed"
            ),
            None => {}
        }
    }
}

/// Says in the log what a reload has changed, or why it has changed nothing.
pub(super) fn log(outcome: &Reloaded) {
    match outcome {
        Ok(renewal) => {
            for change in &renewal.changed {
                let Change { key, before, after } = change;
                tracing::info!(key, before, after, "changed");
            }
            for change in &renewal.needs_restart {
                let Change { key, before, after } = change;
                tracing::warn!(key, before, after, "takes effect at the next start");
            }
            tracing::info!("the configuration was read again");
        }
        Err(mistakes) => {
            for mistake in mistakes {
                tracing::error!("{mistake}");
            }
            tracing::error!("the configuration is wrong; nothing has changed");
        }
    }
}
