//! Certificates that come to their end while a gateway runs.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::field::eventually;
use crate::metrics::{metrics, value};
use crate::process::Process;
use crate::tls::{Identity, NAME};

const DAY: Duration = Duration::from_secs(86_400);

/// Puts a certificate in the place of the other that ends then.
fn renew(identity: &Identity, end: SystemTime) {
    let mut params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    params.not_after = end.into();
    let key = rcgen::KeyPair::generate().unwrap();
    fs::write(identity.certificate(), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(identity.key(), key.serialize_pem()).unwrap();
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn the_end_of_a_certificate_is_told_ahead_and_at_each_load() {
    let identity = Identity::new();
    let now = SystemTime::now();
    let hour = Duration::from_secs(3_600);
    let soon = now + 3 * DAY + hour;
    renew(&identity, soon);
    let [certificate, key] = identity.settings().map(|(key, value)| format!("{key}={value}"));
    let settings = [&certificate, &key, "pitaya.gateway.tls.tcp=127.0.0.1:0"];
    let process = Process::start("epoll", 4_096, &settings);
    let told = || {
        let name = "pitaya_acceptor_tls_certificate_expiration_timestamp_seconds";
        value(&metrics(process.admin), name, "")
    };
    let lines = |text: &str| process.log().lines().filter(|line| line.contains(text)).count();
    eventually("the end is known", || told() == seconds(soon));
    eventually("a warning", || lines("ends soon") == 1);
    assert!(process.log().contains(r#""days":3"#), "{}", process.log());

    // What is told depends on how early somebody wants to know.
    process.reload("[pitaya.gateway.tls]\nexpirydays = 2\n");
    eventually("the reload", || lines("was read again") == 1);
    process.reload("[pitaya.gateway.tls]\nexpirydays = 4\n");
    eventually("a warning at the load", || lines("ends soon") == 2);

    let later = now + 90 * DAY;
    renew(&identity, later);
    process.reload("");
    eventually("the end of the new one", || told() == seconds(later));

    let ended = now - hour;
    renew(&identity, ended);
    process.reload("");
    eventually("an error", || lines("has ended") == 1);
    assert_eq!(told(), seconds(ended));
    assert_eq!(lines("ends soon"), 2, "{}", process.log());
}
