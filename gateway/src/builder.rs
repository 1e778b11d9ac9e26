//! The builder: a gateway as a library, with an application of its own.

use shared::config::{Binary, Config, ConfigError, Sources};
use worker::App;

use crate::control::plan::Plan;
use crate::gateway::{Commands, Gateway, StartError};
use crate::wrapper::Wrapper;
use crate::{logging, process};

/// A gateway under construction: what Pitaya calls a connector.
///
/// The application's handlers and remotes are served in this process, under the gateway's own server type; everything
/// else goes to the servers of the cluster. What handlers do with a session (bind, push, kick, data) acts on this
/// gateway at once, and pushes to users elsewhere go over NATS. With `pitaya.mode=standalone` there is no cluster.
///
/// ```no_run
/// use gateway::builder::Builder;
/// use worker::prelude::*;
/// use worker::version_at_least;
///
/// async fn enter(session: Session, name: String) -> Result<String> {
///     session.bind(&name).await?;
///     Ok(format!("welcome, {name}"))
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let app = App::new("connector")
///         .on("entry.enter", enter)
///         .handshake("client version", |handshake| {
///             if !version_at_least(&handshake.sys.client_version, "1.0.6") {
///                 bail!("CN-426", "please update")
///             }
///             Ok(())
///         });
///     Ok(Builder::from_environment()?.application(app).run()?)
/// }
/// ```
pub struct Builder {
    config: Config,
    sources: Option<Sources>,
    application: Option<App>,
    wrappers: Vec<Box<dyn FnOnce(Plan) -> Plan>>,
}

/// Why a gateway could not be built or started.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Everything that is wrong with the configuration, a sentence each.
    #[error("{}", .0.join("; "))]
    Configuration(Vec<String>),
    /// What made the start impossible.
    #[error(transparent)]
    Start(#[from] StartError),
    /// No thread for signals.
    #[error("cannot watch for signals: {0}")]
    Signals(#[from] std::io::Error),
}

impl Builder {
    /// A gateway with this configuration, which only forwards until it is given an application.
    pub fn new(config: Config) -> Self {
        Self { config, sources: None, application: None, wrappers: Vec::new() }
    }

    /// The same with the environment's configuration, under Pitaya's names.
    ///
    /// Errors: everything that is wrong with it.
    pub fn from_environment() -> Result<Self, BuildError> {
        Self::from_sources(Sources {
            binary: Binary::Gateway,
            file: None,
            environment: std::env::vars().collect(),
            flags: Vec::new(),
        })
    }

    /// The same with everything that a configuration may come from; it is read again when a reload is asked for.
    ///
    /// Errors: everything that is wrong with it.
    pub fn from_sources(sources: Sources) -> Result<Self, BuildError> {
        let texts = |errors: &[ConfigError]| errors.iter().map(ToString::to_string).collect();
        let config = sources.load().map_err(|errors| BuildError::Configuration(texts(&errors)))?;
        Ok(Self { sources: Some(sources), ..Self::new(config) })
    }

    /// The application to host. Its type is the gateway's, unless `pitaya.server.type` is given, which names both.
    #[must_use]
    pub fn application(mut self, application: App) -> Self {
        self.application = Some(application);
        self
    }

    /// Puts a wrapper around all connections of clients, outside those that were given before.
    #[must_use]
    pub fn wrap(mut self, wrapper: impl Wrapper) -> Self {
        self.wrappers.push(Box::new(move |plan| plan.wrap(wrapper)));
        self
    }

    /// What is to be started, worked out and checked.
    ///
    /// Errors: everything that is wrong with the configuration.
    pub fn plan(self) -> Result<Plan, BuildError> {
        let Self { config, sources, application, wrappers } = self;
        let is_hosting = config.string("pitaya.mode") != "standalone";
        let plan = match application {
            Some(application) if is_hosting => Plan::hosting(&config, application),
            application => Plan::new(&config, application),
        };
        let mut plan = plan.map_err(BuildError::Configuration)?;
        plan.sources = sources;
        Ok(wrappers.into_iter().fold(plan, |plan, wrap| wrap(plan)))
    }

    /// Starts the gateway and returns when it serves.
    ///
    /// Errors: what makes serving impossible; never that NATS or etcd is away, which is waited for.
    pub fn start(self) -> Result<Gateway, BuildError> {
        Ok(Gateway::start(self.plan()?, Commands::new())?)
    }

    /// Runs the gateway, with its log, until SIGTERM, SIGINT or SIGQUIT ends it in order. SIGHUP reads the configuration
    /// again.
    ///
    /// Errors: as [`Builder::start`].
    pub fn run(self) -> Result<(), BuildError> {
        self.run_then(|_| {})
    }

    /// The same, and calls `serving` once clients are served.
    ///
    /// Errors: as [`Builder::start`].
    pub fn run_then(self, serving: impl FnOnce(&Gateway)) -> Result<(), BuildError> {
        let level = self.config.string("pitaya.log.level").to_owned();
        let format = self.config.string("pitaya.log.format").to_owned();
        let mut plan = self.plan()?;
        // An application with a log of its own keeps it.
        let (log, _written_until_the_end) = logging::start(&level, &format).ok().unzip();
        plan.log = log;
        process::raise_descriptor_limit();
        let commands = Commands::new();
        process::watch(commands.sender(), plan.is_draining())?;
        let gateway = Gateway::start(plan, commands)?;
        serving(&gateway);
        gateway.wait();
        Ok(())
    }
}
