//! The configuration as a whole: precedence, mistakes reported together, and what is printed.

use std::io::Write as _;

use super::*;

fn load(
    file: &str,
    env: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Config, Vec<ConfigError>> {
    let mut toml = tempfile::NamedTempFile::new().unwrap();
    toml.write_all(file.as_bytes()).unwrap();
    let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    Config::load(Binary::Gateway, Some(toml.path()), owned(env).into_iter(), &owned(flags))
}

fn mistakes(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Vec<String> {
    load(file, env, flags).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn the_defaults_of_each_binary_load_without_warnings() {
    let gateway = Config::defaults(Binary::Gateway);
    assert_eq!(gateway.string("pitaya.server.type"), "connector");
    assert_eq!(gateway.duration("pitaya.heartbeat.interval"), Duration::from_secs(30));
    assert_eq!(gateway.int("pitaya.cluster.rpc.client.nats.maxreconnectionretries"), -1);
    assert_eq!(gateway.list("pitaya.gateway.tcp"), [":3250"]);
    assert_eq!(gateway.list("pitaya.cluster.sd.etcd.endpoints"), ["localhost:2379"]);
    assert_eq!(gateway.size("pitaya.gateway.packet.maxbytes"), 65_536);
    assert!(gateway.bool("pitaya.handler.messages.compression"));
    assert!((gateway.float("pitaya.metrics.statsd.rate") - 1.0).abs() < f64::EPSILON);
    assert!(gateway.secret("pitaya.nats.token").is_empty() && gateway.custom_metrics().is_empty());
    assert!(gateway.map("pitaya.metrics.constlabels").is_empty() && gateway.warnings().is_empty());
    assert!(!gateway.is_set("pitaya.mode"));
    let worker = Config::defaults(Binary::Worker);
    assert_eq!(worker.string("pitaya.server.type"), "room");
}

#[test]
fn defaults_follow_the_documentation_where_pitaya_s_code_differs() {
    let config = Config::defaults(Binary::Worker);
    let duration = |key| config.duration(key).as_millis();
    assert_eq!(duration("pitaya.cluster.rpc.client.nats.connectiontimeout"), 5_000);
    assert_eq!(duration("pitaya.cluster.rpc.server.nats.connectiontimeout"), 5_000);
    assert_eq!(duration("pitaya.cluster.sd.etcd.shutdown.delay"), 300);
    assert_eq!(duration("pitaya.modules.bindingstorage.etcd.leasettl"), 3_600_000);
    let retry: Vec<i64> = ["max", "exponential", "mindelay", "maxdelay", "maxrandom"]
        .iter()
        .map(|name| config.int(&format!("pitaya.worker.retry.{name}")))
        .collect();
    assert_eq!(retry, [5, 2, 0, 10, 10]);
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let key = "pitaya.heartbeat.interval";
    let file = "[pitaya.heartbeat]\ninterval = \"20s\"";
    let env = [("PITAYA_HEARTBEAT_INTERVAL", "25s")];
    let flags = [("Pitaya.Heartbeat.Interval", "26s"), (key, "27s")];
    let seconds = |config: Config| (config.duration(key).as_secs(), config.source(key));
    assert_eq!(seconds(load("", &[], &[]).unwrap()), (30, Source::Default));
    assert_eq!(seconds(load(file, &[], &[]).unwrap()), (20, Source::File));
    assert_eq!(seconds(load(file, &env, &[]).unwrap()), (25, Source::Environment));
    assert_eq!(seconds(load(file, &env, &flags).unwrap()), (27, Source::Flag));
    assert!(load(file, &[], &[]).unwrap().is_set(key));
}

#[test]
fn every_key_can_be_given_by_its_environment_variable() {
    for key in KEYS.iter().filter(|key| !matches!(key.kind, Kind::CustomMetrics)) {
        let sample = match key.kind {
            Kind::ServerName { .. } => "sample",
            Kind::Urls { .. } => "nats://sample:1",
            Kind::Dictionary | Kind::Map => "a=1",
            Kind::Policies => "a=sticky",
            _ if key.default.is_empty() => "sample",
            _ => key.default,
        };
        let env = key.env();
        // Some keys are only good in pairs; that they were understood is all that matters here.
        match load("", &[(&env, sample)], &[]) {
            Ok(config) => assert_eq!(config.source(key.name), Source::Environment, "{env}"),
            Err(errors) => {
                assert!(matches!(errors[..], [ConfigError::Together { .. }]), "{env}: {errors:?}");
            }
        }
    }
}

#[test]
fn documented_names_without_effect_in_pitaya_work() {
    let env = [
        ("PITAYA_BUFFER_AGENT_WRITETIMEOUT", "3s"),
        ("PITAYA_WORKER_REDIS_URL", "redis:1"),
        ("PITAYA_CLUSTER_SD_ETCD_SERVERTYPEBLACKLIST", "a,b"),
        ("PITAYA_CLUSTER_SD_ETCD_SYNCSERVERSPARALLELISM", "3"),
        ("PITAYA_METRICS_CONSTTAGS", "region=eu"),
    ];
    let config =
        load("[pitaya.metrics.prometheus]\nadditionalTags = { shard = \"0\" }", &env, &[]).unwrap();
    assert_eq!(config.duration("pitaya.buffer.agent.conntimeout").as_secs(), 3);
    assert_eq!(config.string("pitaya.worker.redis.serverurl"), "redis:1");
    assert_eq!(config.list("pitaya.cluster.sd.etcd.servertypesblacklist"), ["a", "b"]);
    assert_eq!(config.int("pitaya.cluster.sd.etcd.syncservers.parallelism"), 3);
    assert_eq!(config.map("pitaya.metrics.constlabels")["region"], "eu");
    assert_eq!(config.map("pitaya.metrics.additionallabels")["shard"], "0");
    let both = [("PITAYA_WORKER_REDIS_SERVERURL", "a:1"), ("PITAYA_WORKER_REDIS_URL", "b:1")];
    assert!(matches!(load("", &both, &[]).unwrap_err()[..], [ConfigError::Twice { .. }]));
}

#[test]
fn all_mistakes_are_reported_together_with_key_variable_value_and_form() {
    let file = "[pitaya.heartbeat]\ninterval = 10\n[pitaya.buffer.agent]\nmesages = 5\n";
    let env = [
        ("PITAYA_CONN_RATELIMITING_LIMIT", "0"),
        ("PITAYA_SESSION_UNIQUE", "maybe"),
        ("PITAYA_NATS_PASSWORD", "hunter2"),
    ];
    let flags = [("pitaya.gateway.tcp", "nonsense"), ("pitaya.gatway.ws", ":1")];
    let mistakes = mistakes(file, &env, &flags);
    let all = mistakes.join("\n");
    assert_eq!(mistakes.len(), 7, "{all}");
    for expected in [
        "pitaya.heartbeat.interval (PITAYA_HEARTBEAT_INTERVAL) from file = \"10\": a bare number is not a duration",
        "pitaya.buffer.agent.mesages (file) is not a key; did you mean pitaya.buffer.agent.messages?",
        "set pitaya.conn.ratelimiting.forcedisable to true",
        "PITAYA_SESSION_UNIQUE) from env = \"maybe\": neither true nor false; expected true or false",
        "pitaya.gateway.tcp (PITAYA_GATEWAY_TCP) from flag = \"nonsense\"",
        "pitaya.gatway.ws (flag) is not a key; did you mean pitaya.gateway.ws?",
        "pitaya.nats.user, pitaya.nats.password: one is of no use without the other",
    ] {
        assert!(all.contains(expected), "{expected}\nis not in\n{all}");
    }
    assert!(!all.contains("hunter2"));
}

#[test]
fn an_overridden_mistake_is_still_reported() {
    let env = [("PITAYA_SERIALIZERTYPE", "3")];
    assert_eq!(mistakes("", &env, &[("pitaya.serializertype", "2")]).len(), 1);
}

#[test]
fn unknown_variables_only_warn_and_empty_ones_are_absent() {
    let env = [
        ("PITAYA_CONN_RATELIMITNG_LIMIT", "5"),
        ("PITAYA_SOMETHING_OF_A_GO_SERVER", "1"),
        ("PITAYA_HEARTBEAT_INTERVAL", ""),
        ("HOME", "/"),
    ];
    let config = load("", &env, &[]).unwrap();
    let warnings: Vec<String> = config.warnings().iter().map(ToString::to_string).collect();
    let expected = [
        "environment variable PITAYA_CONN_RATELIMITNG_LIMIT is not a key; \
         did you mean PITAYA_CONN_RATELIMITING_LIMIT?",
        "environment variable PITAYA_SOMETHING_OF_A_GO_SERVER is not a key",
    ];
    assert_eq!(warnings, expected);
    assert!(!config.is_set("pitaya.heartbeat.interval"));
}

#[test]
fn heartbeats_are_whole_seconds() {
    for refused in ["1500ms", "0s", "500ms", "10", "-5s", "2h"] {
        let mistakes = mistakes("", &[("PITAYA_HEARTBEAT_INTERVAL", refused)], &[]);
        assert!(mistakes[0].contains("expected a duration of whole seconds"), "{mistakes:?}");
    }
}

#[test]
fn secrets_come_from_files_and_are_never_printed() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"hunter2\n").unwrap();
    let path = file.path().to_str().unwrap();
    let env = [
        ("PITAYA_NATS_TOKEN_FILE", path),
        ("PITAYA_CLUSTER_SD_ETCD_PASS", "hunter2"),
        ("PITAYA_CLUSTER_SD_ETCD_USER", "root"),
        ("PITAYA_NATS_CONNECT", "nats://user:hunter2@a:4222,nats://b:4222"),
    ];
    let config = load("", &env, &[]).unwrap();
    assert_eq!(config.secret("pitaya.nats.token").reveal(), "hunter2");
    for format in [TableFormat::Text, TableFormat::Toml, TableFormat::Env, TableFormat::Markdown] {
        let text = config.print_table(format);
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(!format!("{config:?} {:?}", config.secret("pitaya.nats.token")).contains("hunter2"));
    let shown = config.shown("pitaya.cluster.rpc.client.nats.connect");
    assert_eq!(shown, "nats://user:***@a:4222,nats://b:4222");
    assert!(!mistakes("", &[("PITAYA_NATS_TOKEN_FILE", "/does/not/exist")], &[])[0].is_empty());
    let twice = [("PITAYA_NATS_TOKEN_FILE", path), ("PITAYA_NATS_TOKEN", "a")];
    assert_eq!(mistakes("", &twice, &[]).len(), 1);
}

#[test]
fn one_nats_url_list_serves_both_connections_unless_a_long_name_is_given() {
    let client = "pitaya.cluster.rpc.client.nats.connect";
    let server = "pitaya.cluster.rpc.server.nats.connect";
    let env = [
        ("PITAYA_NATS_CONNECT", "nats://a:1, nats://b:2"),
        ("PITAYA_CLUSTER_RPC_SERVER_NATS_CONNECT", "nats://c:3"),
    ];
    let config = load("", &env, &[]).unwrap();
    assert_eq!(
        (config.string(client), config.string(server)),
        ("nats://a:1,nats://b:2", "nats://c:3")
    );
    assert_eq!(config.list(client).len(), 2);
    let config = load("", &env, &[("pitaya.nats.connect", "nats://d:4")]).unwrap();
    assert_eq!((config.string(client), config.string(server)), ("nats://d:4", "nats://d:4"));
    assert_eq!(mistakes("", &[], &[(client, "")]).len(), 1, "no URL at all");
}

#[test]
fn only_one_way_to_log_in_to_nats_is_accepted() {
    let env = [("PITAYA_NATS_TOKEN", "a"), ("PITAYA_NATS_NKEY", "b")];
    assert!(mistakes("", &env, &[])[0].contains("one way to log in"));
}

#[test]
fn an_etcd_user_without_a_password_only_warns_as_pitaya_ignores_it() {
    let config = load("", &[("PITAYA_CLUSTER_SD_ETCD_USER", "root")], &[]).unwrap();
    assert!(config.warnings()[0].to_string().contains("ignored without the other"));
}

#[test]
fn a_standalone_gateway_prints_the_worker_s_keys_too() {
    let prints = |config: &Config| {
        config.print_table(TableFormat::Text).contains("pitaya.handler.concurrency")
    };
    assert!(!prints(&Config::defaults(Binary::Gateway)));
    assert!(prints(&load("", &[], &[("pitaya.mode", "standalone")]).unwrap()));
}

#[test]
fn maps_and_dictionaries_come_from_tables_and_from_pairs() {
    let file = r#"
        [pitaya.gateway.dictionary]
        pushes = false
        onMessage = 4
        "room.room.join" = 260
        room.room.Leave = 261
        [pitaya.server.metadata]
        region = "eu"
        [pitaya.gateway]
        tcp = [":1", ":2"]
        [[pitaya.metrics.custom.counters]]
        Name = "sold"
        Help = "Things sold"
    "#;
    let config = load(file, &[("PITAYA_METRICS_CONSTLABELS", "a=1, b=2")], &[]).unwrap();
    let dictionary = config.dictionary();
    assert!(!dictionary.for_pushes);
    assert_eq!(dictionary.code("onMessage"), Some(4));
    assert_eq!(dictionary.code("room.room.join"), Some(260));
    assert_eq!(dictionary.code("room.room.Leave"), Some(261), "letter case is kept");
    assert_eq!(config.map("pitaya.server.metadata")["region"], "eu");
    assert_eq!(config.map("pitaya.metrics.constlabels").len(), 2);
    assert_eq!(config.list("pitaya.gateway.tcp"), [":1", ":2"]);
    assert_eq!(config.custom_metrics()[0].name, "sold");
    let refused = mistakes("[pitaya.gateway.dictionary]\na = 0\n", &[], &[]);
    assert!(refused[0].contains("code 0"), "{refused:?}");
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_one_mistake() {
    assert_eq!(mistakes("[pitaya", &[], &[]).len(), 1);
    let missing = Config::load(
        Binary::Worker,
        Some(Path::new("/does/not/exist.toml")),
        std::iter::empty(),
        &[],
    );
    assert!(matches!(missing.unwrap_err()[..], [ConfigError::File { .. }]));
}

#[test]
fn the_printed_file_and_environment_give_the_same_values_again() {
    let file =
        "[pitaya.gateway.dictionary]\n\"a.b\" = 7\npushes = false\n[pitaya.gateway]\nws = \"\"\n";
    let env = [("PITAYA_HEARTBEAT_INTERVAL", "90s"), ("PITAYA_METRICS_GAME", "a \"b\"")];
    let config = load(file, &env, &[]).unwrap();
    let values = |config: &Config| -> Vec<String> {
        let rows = KEYS.iter().zip(&config.slots);
        rows.map(|(key, slot)| format!("{} {}", key.name, slot.value.shown(&key.kind))).collect()
    };
    let again = load(&config.print_table(TableFormat::Toml), &[], &[]).unwrap();
    assert_eq!(values(&again), values(&config));
    let printed = config.print_table(TableFormat::Env);
    let pairs: Vec<(&str, &str)> = printed
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .collect();
    assert_eq!(values(&load("", &pairs, &[]).unwrap()), values(&config));
    let text = config.print_table(TableFormat::Text);
    assert!(text.lines().any(|line| line.contains("1m30s") && line.contains(" env ")), "{text}");
}

#[test]
fn the_table_for_the_readme_depends_on_nothing_but_the_table() {
    let plain = Config::defaults(Binary::Gateway).print_table(TableFormat::Markdown);
    let other = load("", &[("PITAYA_HEARTBEAT_INTERVAL", "90s")], &[]).unwrap();
    assert_eq!(other.print_table(TableFormat::Markdown), plain);
    assert!(plain.contains("`PITAYA_HEARTBEAT_INTERVAL` | `30s`"));
    assert_eq!("md".parse(), Ok(TableFormat::Markdown));
    assert!("yaml".parse::<TableFormat>().is_err());
}
