//! The edge's part of the plan: ports with TLS, the certificate, proxies in front of us, pages that may connect.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use shared::config::Config;
use shared::networks::Networks;
use shared::session::ToldAddress;
use shared::websocket::upgrade::OriginPolicy;

use super::plan::addresses;
use crate::listener::{Security, Service};
use crate::rules::{ProxyRules, TlsRules};
use crate::tls::{CertificateFiles, Certificates, OldestVersion};
use crate::wire::Protocol;

/// Word of `pitaya.gateway.origins` for pages of the host that the request itself names.
const SAME_HOST: &str = "same-host";

/// Works out where clients are served. A certificate alone puts TLS on all ports; ports that are named for TLS leave
/// the others plain.
pub(super) fn ports(config: &Config, mistakes: &mut Vec<String>) -> Vec<(SocketAddr, Service)> {
    let has_certificate = !config.string("pitaya.gateway.tls.cert").is_empty();
    let mut listed = |key: &str| addresses(config, key, mistakes);
    let plain = [listed("pitaya.gateway.tcp"), listed("pitaya.gateway.ws")];
    let tls = [listed("pitaya.gateway.tls.tcp"), listed("pitaya.gateway.tls.ws")];
    let names_ports = tls.iter().any(|addresses| !addresses.is_empty());
    if names_ports && !has_certificate {
        mistakes.push(
            "pitaya.gateway.tls.tcp and pitaya.gateway.tls.ws need pitaya.gateway.tls.cert and \
             pitaya.gateway.tls.key"
                .to_owned(),
        );
    }
    let security = if has_certificate && !names_ports { Security::Tls } else { Security::Plain };
    let mut ports = Vec::new();
    for (lists, security) in [(plain, security), (tls, Security::Tls)] {
        for (addresses, protocol) in lists.into_iter().zip([Protocol::Tcp, Protocol::WebSocket]) {
            let service = Service { protocol, security };
            ports.extend(addresses.into_iter().map(|address| (address, service)));
        }
    }
    if ports.is_empty() {
        mistakes.push(
            "pitaya.gateway.tcp and pitaya.gateway.ws are both empty; nobody could connect"
                .to_owned(),
        );
    }
    ports
}

/// Reads the certificate, where there is one.
pub(super) fn tls(config: &Config, mistakes: &mut Vec<String>) -> Option<TlsRules> {
    let path = |key: &str| PathBuf::from(config.string(key));
    let files = CertificateFiles {
        certificate: path("pitaya.gateway.tls.cert"),
        key: path("pitaya.gateway.tls.key"),
        oldest_version: match config.string("pitaya.gateway.tls.minversion") {
            "1.3" => OldestVersion::Tls13,
            _ => OldestVersion::Tls12,
        },
    };
    if files.certificate.as_os_str().is_empty() {
        return None;
    }
    match Certificates::load(files) {
        Ok(certificates) => Some(TlsRules {
            certificates: Arc::new(certificates),
            handshakes_max: config.size("pitaya.gateway.tls.handshakes"),
        }),
        Err(error) => {
            mistakes.push(format!("pitaya.gateway.tls: {error}"));
            None
        }
    }
}

/// Whom to believe.
pub(super) fn proxies(config: &Config, mistakes: &mut Vec<String>) -> ProxyRules {
    let key = "pitaya.gateway.proxy.trusted";
    let texts = config.list(key);
    let trusted = Networks::parse(texts.iter().map(String::as_str)).unwrap_or_else(|error| {
        mistakes.push(format!("{key}: {error}"));
        Networks::default()
    });
    let expects_header = config.bool("pitaya.acceptor.proxyprotocol");
    let believes_forwarded = config.bool("pitaya.gateway.proxy.forwarded");
    if trusted.is_empty() && (expects_header || believes_forwarded) {
        mistakes.push(format!("{key} is empty; no proxy would be believed"));
    }
    ProxyRules { expects_header, believes_forwarded, trusted }
}

/// How much of its address a client's session tells.
pub(super) fn told_address(config: &Config) -> ToldAddress {
    if config.bool("pitaya.gateway.session.address") {
        ToldAddress::Whole
    } else {
        ToldAddress::Version
    }
}

/// Which pages may connect.
pub(super) fn origins(config: &Config) -> OriginPolicy {
    let allowed = config.list("pitaya.gateway.origins");
    match allowed.as_slice() {
        [] => OriginPolicy::Any,
        [word] if word == SAME_HOST => OriginPolicy::SameHost,
        _ => OriginPolicy::List(allowed),
    }
}
