//! The certificate that clients are shown, read from files, and read again while the gateway runs.
//!
//! Connections keep the configuration that they began with; a reload changes what later ones get and drops nobody. The
//! invariant: what is in use is always a certificate and the key that belongs to it, so a reload that fails changes
//! nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ProducesTickets};

use super::expiry;

/// The oldest version of TLS that clients may speak; older ones than 1.2 are never taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldestVersion {
    /// TLS 1.2 and 1.3.
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

/// Where certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, with those between it and its root behind it, as PEM.
    pub certificate: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
    /// What clients may speak.
    pub oldest_version: OldestVersion,
}

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read, or is not PEM with the right content.
    #[error("{path:?}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// The file of the certificate has none in it.
    #[error("{path:?}: there is no certificate in it")]
    Empty {
        /// Which file.
        path: PathBuf,
    },
    /// The two do not belong together, or the key is of a kind that we cannot use.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
}

/// The certificate in use. Shared by all reactors.
pub struct Certificates {
    files: CertificateFiles,
    /// Kept over reloads, so that clients can resume what they began before.
    tickets: Arc<dyn ProducesTickets>,
    current: ArcSwap<ServerConfig>,
    /// When it ends; [`i64::MAX`] where that cannot be told.
    ends_at_s: AtomicI64,
}

impl Certificates {
    /// Reads the files.
    ///
    /// Errors: why they cannot be used.
    pub fn load(files: CertificateFiles) -> Result<Self, CertificateError> {
        let tickets = ring::Ticketer::new()?;
        let (config, ends_at_s) = read(&files, tickets.clone())?;
        let current = ArcSwap::from_pointee(config);
        Ok(Self { files, tickets, current, ends_at_s: AtomicI64::new(ends_at_s) })
    }

    /// Reads the files again, for all later connections. Blocks on the disk: not for a reactor.
    ///
    /// Errors: why they cannot be used; the certificate from before stays in use then.
    pub fn reload(&self) -> Result<(), CertificateError> {
        let (config, ends_at_s) = read(&self.files, self.tickets.clone())?;
        self.current.store(Arc::new(config));
        self.ends_at_s.store(ends_at_s, Ordering::Relaxed);
        Ok(())
    }

    /// What a new connection uses.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// When the certificate, or one that it rests on, ends: seconds since 1970; `None` where that cannot be told.
    pub fn ends_at_s(&self) -> Option<i64> {
        Some(self.ends_at_s.load(Ordering::Relaxed)).filter(|end| *end != i64::MAX)
    }

    /// Where it comes from.
    pub fn files(&self) -> &CertificateFiles {
        &self.files
    }
}

/// What clients get, and when it ends.
fn read(
    files: &CertificateFiles,
    tickets: Arc<dyn ProducesTickets>,
) -> Result<(ServerConfig, i64), CertificateError> {
    let in_file = |path: &PathBuf| {
        let path = path.clone();
        move |source| CertificateError::File { path, source }
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .map_err(in_file(&files.certificate))?;
    if chain.is_empty() {
        return Err(CertificateError::Empty { path: files.certificate.clone() });
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(in_file(&files.key))?;
    let ends_at_s = expiry::ends_at_s(&chain).unwrap_or(i64::MAX);
    let versions = match files.oldest_version {
        OldestVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12][..],
        OldestVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // Tickets hold the state on the client's side; a table of sessions on ours would be memory that clients fill.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = tickets;
    // What comes before the handshake's end could be sent again by somebody who listened (RFC 8446, 8).
    config.max_early_data_size = 0;
    Ok((config, ends_at_s))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Made {
        directory: tempfile::TempDir,
    }

    impl Made {
        fn new() -> Self {
            let made = Self { directory: tempfile::tempdir().unwrap() };
            made.write(&rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap());
            made
        }

        fn write(&self, made: &rcgen::CertifiedKey<rcgen::KeyPair>) {
            fs::write(self.files().certificate, made.cert.pem()).unwrap();
            fs::write(self.files().key, made.signing_key.serialize_pem()).unwrap();
        }

        fn files(&self) -> CertificateFiles {
            CertificateFiles {
                certificate: self.directory.path().join("certificate.pem"),
                key: self.directory.path().join("key.pem"),
                oldest_version: OldestVersion::Tls12,
            }
        }
    }

    #[test]
    fn a_reload_changes_what_later_connections_get_and_a_failed_one_nothing() {
        let made = Made::new();
        let certificates = Certificates::load(made.files()).unwrap();
        let first = certificates.current();
        certificates.reload().unwrap();
        let second = certificates.current();
        assert!(!Arc::ptr_eq(&first, &second));
        fs::write(made.files().key, "no key").unwrap();
        assert!(matches!(certificates.reload(), Err(CertificateError::File { .. })));
        assert!(Arc::ptr_eq(&second, &certificates.current()));
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let made = Made::new();
        let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        fs::write(made.files().key, other.signing_key.serialize_pem()).unwrap();
        assert!(matches!(Certificates::load(made.files()), Err(CertificateError::Pair(_))));
        fs::write(made.files().certificate, "").unwrap();
        assert!(Certificates::load(made.files()).is_err());
        fs::remove_file(made.files().certificate).unwrap();
        assert!(matches!(Certificates::load(made.files()), Err(CertificateError::File { .. })));
    }
}
