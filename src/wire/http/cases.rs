//! Request cases from `tests/data/http`, and what must hold for all of them cut short or changed.

use super::*;

const REQUESTS: &str = include_str!("../../../tests/data/http/requests.txt");

#[test]
fn every_request_case_is_read_as_written_down() {
    let cases = cases(REQUESTS);
    assert!(cases.len() >= 150, "{}", cases.len());
    let wrong = cases.iter().filter_map(|Case { name, bytes, want }| {
        let found = describe(bytes);
        (found != *want).then(|| format!("{name}: {found}, not {want}"))
    });
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_prefix_of_a_request_asks_for_more() {
    for Case { name, bytes, .. } in &cases(REQUESTS) {
        let Next::Request { len, .. } = next_request(bytes) else { continue };
        // The long ones are long by repetition, so a sample of their prefixes says as much.
        let step = if len > 2000 { 97 } else { 1 };
        for cut in (0..len).step_by(step).chain(len.saturating_sub(8)..len) {
            assert!(matches!(next_request(&bytes[..cut]), Next::More), "{name}: {cut} of {len}");
        }
        assert!(
            matches!(next_request(&bytes[..len]), Next::Request { len: all, .. } if all == len),
            "{name}"
        );
    }
}

#[test]
fn a_refusal_stays_a_refusal_with_more_bytes() {
    for Case { name, bytes, .. } in &cases(REQUESTS) {
        let Next::Refuse { reason, status } = next_request(bytes) else { continue };
        assert_eq!(reason.status(), status, "{name}");
        let mut longer = bytes.clone();
        longer.extend_from_slice(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(matches!(next_request(&longer), Next::Refuse { .. }), "{name}");
    }
}

#[test]
fn every_reason_to_refuse_has_a_case_and_its_own_word() {
    let cases = cases(REQUESTS);
    for reason in RefuseReason::ALL {
        let want = format!("refuse {} {reason}", reason.status().code());
        assert!(cases.iter().any(|case| case.want == want), "{reason} has no case");
        assert_eq!(RefuseReason::ALL.iter().filter(|other| other.word() == reason.word()).count(), 1);
        assert!(!reason.status().reason().is_empty());
    }
}

#[test]
fn the_whole_fields_of_a_request_are_at_hand() {
    let bytes = b"POST http://Other:80/ipxe?a=1 HTTP/1.1\r\nHost: h\r\nuser-agent: iPXE/1.21.1+ (g1)\r\nA: 1\r\na:  2 \r\n\
        X: \xff\r\nContent-Length: 3\r\n\r\nb=2";
    let Next::Request { request, len } = next_request(bytes) else { panic!("{:?}", next_request(bytes)) };
    assert_eq!(len, bytes.len());
    assert_eq!(
        (request.method, request.method_token, request.version),
        (Method::Post, "POST", Version::Http11)
    );
    assert_eq!(
        (request.target, request.path, request.query),
        ("http://Other:80/ipxe?a=1", "/ipxe", Some("a=1"))
    );
    assert_eq!((request.host(), request.header("HOST")), ("Other:80", Some("h")));
    assert_eq!(request.headers("a").collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!((request.header("a"), request.sole_header("a")), (Some("1"), None));
    assert_eq!((request.header("x"), request.sole_header("x"), request.header("y")), (None, None, None));
    assert_eq!(request.fields().count(), 6);
    assert!(request.is_ipxe() && !request.is_uefi() && request.is_form());
    assert_eq!(request.plus(), Plus::Plus);
    assert_eq!(request.query_fields().count() + request.form_fields().count(), 2);
    assert_eq!(request.body, b"b=2");
}

#[test]
fn only_the_real_ipxe_counts_as_ipxe() {
    for (agent, ipxe) in [
        ("iPXE/1.0.0+", true),
        ("iPXE/", true),
        ("ipxe/1", false),
        ("Mozilla/5.0 iPXE/1", false),
        ("iPXE", false),
        ("", false),
    ] {
        let text = format!("GET / HTTP/1.1\r\nHost: h\r\nUser-Agent: {agent}\r\n\r\n");
        let Next::Request { request, .. } = next_request(text.as_bytes()) else { panic!("{agent}") };
        assert_eq!(request.is_ipxe(), ipxe, "{agent}");
    }
}

#[test]
fn go_on_is_said_only_to_who_waits_for_it() {
    let head = "POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n";
    assert!(expects_continue(head.as_bytes()));
    for other in [
        format!("{head}x"),
        head[..head.len() - 1].to_owned(),
        head.replace("Length: 2", "Length: 0"),
        head.replace("HTTP/1.1", "HTTP/1.0"),
        head.replace("Expect", "Accept"),
        head.replace("Host: h", "Host: h\r\nUser-Agent: iPXE/2"),
    ] {
        assert!(!expects_continue(other.as_bytes()), "{other}");
    }
}

/// One line of a case file.
struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    want: String,
}

fn cases(text: &'static str) -> Vec<Case> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let cases = lines.map(|line| {
        let (name, rest) = line.split_once(" | ").unwrap_or_else(|| panic!("no bytes: {line}"));
        let (bytes, want) = rest.rsplit_once("| ").unwrap_or_else(|| panic!("no result: {line}"));
        let bytes = bytes.strip_suffix(' ').unwrap_or(bytes);
        let bytes = crate::wire::http::unescape(bytes.strip_prefix(' ').unwrap_or(bytes));
        let want = String::from_utf8_lossy(&crate::wire::http::unescape(want)).into_owned();
        Case { name: name.trim(), bytes, want }
    });
    cases.collect()
}

fn describe(bytes: &[u8]) -> String {
    match next_request(bytes) {
        Next::More => "more".to_owned(),
        Next::Refuse { status, reason } => format!("refuse {} {reason}", status.code()),
        Next::Request { request, len } => format!(
            "request {} {} {} {} {} {} {}",
            request.method_token,
            request.path,
            request.query.unwrap_or("-"),
            if request.version == Version::Http10 { "1.0" } else { "1.1" },
            if request.keep_alive() { "keep" } else { "close" },
            request.body.len(),
            bytes.len() - len,
        ),
    }
}
