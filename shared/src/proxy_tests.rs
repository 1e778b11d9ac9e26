//! Tests of [`super`]: every cut of good headers, every kind of wrong one.

use super::*;

const V1: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.2 51234 3250\r\n";

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    [SIGNATURE_V2, &[command, family], &length, rest].concat()
}

fn v2_ipv4() -> Vec<u8> {
    v2(0x21, 0x11, &[192, 0, 2, 1, 198, 51, 100, 2, 0xc8, 0x22, 0x0c, 0xb2])
}

fn client(text: &str) -> Source {
    Source::Client(text.parse().unwrap())
}

#[test]
fn good_headers_are_read_and_leave_what_follows() {
    let v6 = v2(0x21, 0x21, &[&[0x20, 1][..], &[0; 13], &[9], &[0; 16], &[0, 7, 0, 8]].concat());
    let with_tlv = {
        let rest = [&v2_ipv4()[16..], &[0x04, 0, 3, 1, 2, 3]].concat();
        v2(0x21, 0x11, &rest)
    };
    let full = {
        let rest = [&v2_ipv4()[16..], &[0; REST_BYTES_MAX_V2 - 12]].concat();
        v2(0x21, 0x11, &rest)
    };
    let cases: Vec<(Vec<u8>, Source)> = vec![
        (V1.to_vec(), client("192.0.2.1:51234")),
        (b"PROXY TCP6 2001:db8::9 ::1 7 8\r\n".to_vec(), client("[2001:db8::9]:7")),
        (b"PROXY TCP6 ::ffff:1.2.3.4 ::1 7 8\r\n".to_vec(), client("1.2.3.4:7")),
        (b"PROXY UNKNOWN\r\n".to_vec(), Source::Proxy),
        (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(), Source::Proxy),
        (v2_ipv4(), client("192.0.2.1:51234")),
        (v6, client("[2001::9]:7")),
        (with_tlv, client("192.0.2.1:51234")),
        (full, client("192.0.2.1:51234")),
        (v2(0x21, 0x12, &v2_ipv4()[16..]), client("192.0.2.1:51234")),
        (v2(0x20, 0x00, &[]), Source::Proxy),
        (v2(0x20, 0x11, &v2_ipv4()[16..]), Source::Proxy),
        (v2(0x21, 0x00, &[]), Source::Proxy),
    ];
    for (header, source) in cases {
        for cut in 0..header.len() {
            assert_eq!(decode(&header[..cut]), Ok(None), "{header:?} cut at {cut}");
        }
        let behind = [&header[..], b"\x01\0\0\0"].concat();
        assert_eq!(decode(&behind), Ok(Some((source, header.len()))), "{header:?}");
    }
}

#[test]
fn wrong_headers_are_refused() {
    let long_line = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200], b"\r\n"].concat();
    let cases: Vec<Vec<u8>> = vec![
        b"\x01\0\0\x02{}".to_vec(),
        b"GET / HTTP/1.1\r\n".to_vec(),
        b"\x16\x03\x01".to_vec(),
        b"PROXX".to_vec(),
        b"PROXYTCP4".to_vec(),
        b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(),
        b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(),
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.400 1.2.3.4 1 2\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n".to_vec(),
        b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n".to_vec(),
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n".to_vec(),
        b"PROXY TCP4 \xff 1.2.3.4 1 2\r\n".to_vec(),
        b"PROXY \r\n".to_vec(),
        b"PROXY\r\n".to_vec(),
        long_line,
        vec![b'\r'; 16],
        v2(0x11, 0x11, &v2_ipv4()[16..]),
        v2(0x22, 0x11, &v2_ipv4()[16..]),
        v2(0x21, 0x31, &[0; 216]),
        v2(0x21, 0x41, &[0; 36]),
        v2(0x21, 0x13, &v2_ipv4()[16..]),
        v2(0x21, 0x11, &[1, 2, 3, 4]),
        v2(0x21, 0x21, &v2_ipv4()[16..]),
    ];
    for bytes in cases {
        assert_eq!(decode(&bytes), Err(ProxyError), "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_header_over_its_limit_is_refused_on_its_front() {
    assert_eq!(decode(&v2(0x21, 0x11, &[0; REST_BYTES_MAX_V2 + 1])[..16]), Err(ProxyError));
    assert_eq!(decode(&v2(0x21, 0x11, &vec![0; 65_535])[..16]), Err(ProxyError));
    let line = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
    assert_eq!(decode(&line[..106]), Ok(None));
    assert_eq!(decode(&line[..107]), Err(ProxyError));
}

#[test]
fn no_bytes_make_it_panic() {
    for first in 0..=255u8 {
        assert_eq!(decode(&[first]).is_ok(), matches!(first, b'P' | b'\r'), "{first}");
    }
    for header in [V1.to_vec(), v2_ipv4()] {
        for position in 0..header.len() {
            for value in [0, 1, b' ', b'\r', b'\n', 0x7f, 0x80, 0xff] {
                let mut changed = header.clone();
                changed[position] = value;
                let _ = decode(&changed);
            }
        }
    }
}

#[test]
fn the_client_is_the_last_address_that_is_no_proxy_of_ours() {
    let trusted = Networks::parse(["10.0.0.0/8", "::1"]).unwrap();
    let of = |forwarded: Option<&str>, real: Option<&str>| {
        forwarded_client(forwarded, real, &trusted).map(|address| address.to_string())
    };
    let client = |text: &str| of(Some(text), None);
    assert_eq!(client("192.0.2.7").as_deref(), Some("192.0.2.7"));
    assert_eq!(client("6.6.6.6, 192.0.2.7, 10.0.0.1").as_deref(), Some("192.0.2.7"));
    assert_eq!(client("10.0.0.9, 10.0.0.1").as_deref(), Some("10.0.0.9"));
    assert_eq!(client("192.0.2.7:443").as_deref(), Some("192.0.2.7"));
    assert_eq!(client("[2001:db8::1]:443").as_deref(), Some("2001:db8::1"));
    assert_eq!(client("[2001:db8::1]").as_deref(), Some("2001:db8::1"));
    assert_eq!(client("::ffff:192.0.2.7").as_deref(), Some("192.0.2.7"));
    // What stands in front of the first untrusted address is not even looked at.
    assert_eq!(client("<script>, 192.0.2.7").as_deref(), Some("192.0.2.7"));
    assert_eq!(client("unknown, 10.0.0.1").as_deref(), Some("10.0.0.1"));
    for nothing in ["", "unknown", "192.0.2.7, ", "192.0.2.7, _hidden", "192.0.2.7 10.0.0.1"] {
        assert_eq!(client(nothing), None, "{nothing}");
    }
    assert_eq!(of(None, Some(" 192.0.2.8 ")).as_deref(), Some("192.0.2.8"));
    assert_eq!(of(Some("unknown"), Some("192.0.2.8")), None, "the chain says more");
    assert_eq!(of(None, Some("x")), None);
    assert_eq!(of(None, None), None);
}
