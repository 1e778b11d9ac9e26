//! The end of a certificate: when it is, and what an operator is told of it.
//!
//! A certificate that has ended turns every new player away at once, and a gateway that runs for months is where a
//! renewal is forgotten. No clock here; the invariant: one text a day and certificate at most.

use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode, SliceReader, Tag, Tagged};
use rustls::pki_types::CertificateDer;

const DAY_S: i64 = 86_400;

/// The earliest end among the certificates of a chain, seconds since 1970: clients need all of them. `None` when none of
/// them tells.
pub(super) fn ends_at_s(chain: &[CertificateDer<'_>]) -> Option<i64> {
    chain.iter().filter_map(|certificate| not_after_s(certificate).ok()).min()
}

/// The end of one certificate. Only what lies on the way to it is read (RFC 5280, 4.1):
///
/// ```text
/// Certificate { TBSCertificate { [0] version, serial, signature, issuer, Validity { not before, not after }, … }, … }
/// ```
fn not_after_s(certificate: &[u8]) -> der::Result<i64> {
    let mut whole = SliceReader::new(certificate)?;
    let mut signed = inside(&mut whole)?;
    let mut fields = inside(&mut signed)?;
    let has_version = matches!(AnyRef::decode(&mut fields)?.tag(), Tag::ContextSpecific { .. });
    // Serial number, signature and issuer, of which the first has just been read where there is no version.
    for _ in 0..if has_version { 3 } else { 2 } {
        AnyRef::decode(&mut fields)?;
    }
    let mut validity = inside(&mut fields)?;
    let _not_before = AnyRef::decode(&mut validity)?;
    let not_after = AnyRef::decode(&mut validity)?;
    let since_1970 = match not_after.tag() {
        Tag::UtcTime => not_after.decode_as::<UtcTime>()?.to_unix_duration(),
        _ => not_after.decode_as::<GeneralizedTime>()?.to_unix_duration(),
    };
    Ok(since_1970.as_secs() as i64)
}

/// What is in the next value.
fn inside<'a>(reader: &mut SliceReader<'a>) -> der::Result<SliceReader<'a>> {
    SliceReader::new(AnyRef::decode(reader)?.value())
}

/// What is to be said of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It ends in so many days, rounded down.
    EndsSoon {
        /// Days left.
        days: i64,
    },
    /// It has ended: new clients refuse it.
    Ended,
}

/// Remembers what was said.
#[derive(Debug, Default)]
pub struct Watch {
    said: Option<(i64, Notice)>,
}

impl Watch {
    /// What to say now of a certificate that ends at `ends_at_s`, if it has not been said yet; from `warning_days` before
    /// the end on, of which 0 says nothing before the end.
    pub fn look(&mut self, ends_at_s: i64, now_s: i64, warning_days: usize) -> Option<Notice> {
        let left_s = ends_at_s.saturating_sub(now_s);
        let warning_s = i64::try_from(warning_days).unwrap_or(i64::MAX).saturating_mul(DAY_S);
        let notice = match left_s {
            ..=0 => Notice::Ended,
            _ if left_s > warning_s => return None,
            _ => Notice::EndsSoon { days: left_s / DAY_S },
        };
        let is_new = self.said.replace((ends_at_s, notice)) != Some((ends_at_s, notice));
        is_new.then_some(notice)
    }

    /// The certificate was read again: what is wrong with it is told again.
    pub fn forget(&mut self) {
        self.said = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_end_of_a_chain_counts() {
        let made = |year| {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            params.self_signed(&key).unwrap().der().clone()
        };
        let in_2040 = 2_208_988_800;
        assert_eq!(ends_at_s(&[made(2_040)]), Some(in_2040));
        assert_eq!(ends_at_s(&[made(2_050), made(2_040), made(2_060)]), Some(in_2040));
        assert_eq!(ends_at_s(&[CertificateDer::from(vec![0x30, 0x03, 1])]), None);
        assert_eq!(ends_at_s(&[]), None);
    }

    #[test]
    fn each_day_before_the_end_is_told_once_and_a_new_certificate_anew() {
        let mut watch = Watch::default();
        let end = 100 * DAY_S;
        assert_eq!(watch.look(end, end - 14 * DAY_S - 1, 14), None);
        let soon = |days| Some(Notice::EndsSoon { days });
        assert_eq!(watch.look(end, end - 14 * DAY_S, 14), soon(14));
        assert_eq!(watch.look(end, end - 14 * DAY_S + 1, 14), soon(13));
        assert_eq!(watch.look(end, end - 13 * DAY_S - 5, 14), None, "told today");
        assert_eq!(watch.look(end, end - 1, 14), soon(0));
        assert_eq!(watch.look(end, end, 14), Some(Notice::Ended));
        assert_eq!(watch.look(end, end + 9 * DAY_S, 14), None);
        watch.forget();
        assert_eq!(watch.look(end, end + 9 * DAY_S, 14), Some(Notice::Ended));
        assert_eq!(watch.look(end + 90 * DAY_S, end + 9 * DAY_S, 14), None, "renewed");
        assert_eq!(watch.look(end, end - 1, 0), None, "no warning was wanted");
        assert_eq!(Watch::default().look(end, end, 0), Some(Notice::Ended));
    }
}
