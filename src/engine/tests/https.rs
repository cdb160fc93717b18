//! The same engine through TLS.

use std::sync::OnceLock;

use super::*;
use crate::tls::client::{self, Client, VERSIONS};
use crate::tls::{AUTHORITY_FILE, Certificates, Source};

/// One authority for all labs: making a key takes longer than most tests.
fn authority() -> &'static (Arc<Certificates>, [Arc<client::Config>; 2]) {
    static MADE: OnceLock<(Arc<Certificates>, [Arc<client::Config>; 2])> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("bootstorm-engine-{}-https", std::process::id()));
        let source = Source::Own { folder: folder.clone(), host: None };
        let shown = Certificates::open(source, &[]).unwrap();
        let trust = VERSIONS.map(|version| client::config(&folder.join(AUTHORITY_FILE), version));
        fs::remove_dir_all(&folder).unwrap();
        (Arc::new(shown), trust)
    })
}

/// What a lab shows.
pub(super) fn certificates() -> Arc<Certificates> {
    Arc::clone(&authority().0)
}

impl Lab {
    /// Version 0 is TLS 1.2, version 1 is TLS 1.3.
    pub(super) fn https(&self, version: usize) -> Client {
        let addr = self.engine.as_ref().unwrap().bound.https[0];
        let stream = TcpStream::connect(SocketAddr::V4(addr)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client::connect(&authority().1[version], stream).unwrap()
    }
}

#[test]
fn a_file_arrives_whole_and_by_ranges_through_tls() {
    let lab = Lab::start(Driver::Auto, 5_000_000);
    for version in 0..VERSIONS.len() {
        let mut stream = lab.https(version);
        let (head, body) = get(&mut stream, "/images/big/payload.bin", "");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(body == lab.content, "the file arrives as it is");
        for (first, last) in [(0, 0), (5, 70_000), (4_900_000, 4_999_999), (65_536, 131_071), (1, 16_384)] {
            let range = format!("Range: bytes={first}-{last}\r\n");
            let (head, body) = get(&mut stream, "/images/big/payload.bin", &range);
            assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
            assert!(body == lab.content[first..=last], "bytes {first} to {last}");
        }
        let (head, body) = get(&mut stream, "/images/big/payload.bin", "Range: bytes=0-9,100-70000\r\n");
        assert!(head.contains("multipart/byteranges"), "{head}");
        assert!(body.windows(69_901).any(|w| w == &lab.content[100..=70_000]));
        write!(stream, "GET /images/big/small.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        assert_eq!(response(&mut stream).1, b"line one\nline two\n");
        assert_eq!(stream.read(&mut [0]).expect("an end that was said"), 0);
    }
    for word in ["1.2", "1.3"] {
        let name = format!("bootstorm_https_handshakes_total{{outcome=\"tls-{word}\"}}");
        assert_eq!(lab.metric(&name), 1, "{name}");
    }
    assert!(lab.metric("bootstorm_http_bytes_total{sender=\"tls\"}") > 10_000_000);
}

#[test]
fn who_asks_before_a_body_is_told_to_go_on_and_ipxe_is_not() {
    let lab = Lab::with_jobs(Driver::Mio, 1_000);
    let ask = |agent: &str| {
        format!(
            "POST /ipxe HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\nExpect: 100-continue\r\nContent-Length: 21\r\n\r\n"
        )
    };
    let body = "mac=02:00:00:00:00:01";
    for version in 0..VERSIONS.len() {
        let mut stream = lab.https(version);
        // Asked for twice: it stands between two responses, not in one.
        for _ in 0..2 {
            stream.write_all(ask("curl/8").as_bytes()).unwrap();
            let mut told = [0; 25];
            stream.read_exact(&mut told).unwrap();
            assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
            stream.write_all(body.as_bytes()).unwrap();
            let (head, script) = response(&mut stream);
            assert!(head.starts_with("HTTP/1.1 200 ") && script.starts_with(b"#!ipxe"), "{head}");
        }
        stream.write_all(ask("iPXE/1.21.1").as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        stream.write_all(body.as_bytes()).unwrap();
        let (head, _) = response(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
}

#[test]
fn a_script_asked_for_by_https_names_https_urls() {
    let lab = Lab::with_jobs(Driver::Mio, 1_000);
    lab.add("linux");
    let mut stream = lab.https(0);
    let path = "/ipxe?mac=02:00:00:00:00:01&platform=efi&buildarch=x86_64";
    let script = String::from_utf8(get(&mut stream, path, "User-Agent: iPXE/1.21\r\n").1).unwrap();
    let base = format!("https://{}", lab.engine.as_ref().unwrap().bound.https[0]);
    assert!(script.contains(&format!("{base}/s/")) && !script.contains("http://"), "{script}");
    assert!(lab.script().contains("http://"), "who came by HTTP stays there");
}

#[test]
fn many_slow_readers_through_tls_all_get_the_file() {
    let lab = Lab::start(Driver::Mio, 3_000_000);
    let mut streams: Vec<Client> = (0..24).map(|i| lab.https(i % 2)).collect();
    for stream in &mut streams {
        write!(stream, "GET /images/big/payload.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
    }
    for stream in &mut streams {
        let (_, body) = response(stream);
        assert!(body == lab.content);
        assert_eq!(stream.read(&mut [0]).expect("an end that was said"), 0);
    }
}

#[test]
fn the_end_of_the_last_file_is_not_even_encrypted_before_its_boot_is_recorded() {
    use crate::jobs::job::Stage;
    let lab = Lab::with_jobs(Driver::Mio, 1_000_000);
    let id = lab.add("linux");
    let script = lab.script();
    let url = url_path(&script, "initrd.img");
    lab.store.inner().fill_up(true);
    let mut stream = lab.https(1);
    write!(stream, "GET {url} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let held_from = lab.content.len() - 64 * 1024;
    let mut body = vec![0; held_from];
    stream.read_exact(&mut body).unwrap();
    assert!(body == lab.content[..held_from], "everything before the last 64 KiB leaves");
    let sealed = lab.metric("bootstorm_http_bytes_total{sender=\"tls\"}");
    assert!(sealed < lab.content.len() as u64 - 32 * 1024, "{sealed}");
    stream.sock.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "nothing comes");
    assert_ne!(lab.stage(id), Stage::Running);
    lab.store.inner().fill_up(false);
    stream.sock.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut rest = vec![0; 64 * 1024];
    stream.read_exact(&mut rest).unwrap();
    assert!(rest == lab.content[held_from..]);
    assert_eq!(lab.stage(id), Stage::Running);
}

#[test]
fn a_file_truncated_under_tls_ends_without_a_farewell() {
    let lab = Lab::start(Driver::Mio, 40_000_000);
    let mut stream = lab.https(1);
    write!(stream, "GET /images/big/payload.bin HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut some = vec![0; 100_000];
    stream.read_exact(&mut some).unwrap();
    let file = fs::File::options().write(true).open(lab.dir.join("images/big/payload.bin")).unwrap();
    file.set_len(20_000_000).unwrap();
    let mut rest = Vec::new();
    assert!(stream.read_to_end(&mut rest).is_err(), "a cut body must not look whole");
    assert!(rest.len() < 40_000_000);
    assert_eq!(lab.metric("bootstorm_files_changed_total"), 1);
    let (head, _) = get(&mut lab.https(0), "/healthz", "");
    assert!(head.starts_with("HTTP/1.1 200"), "and the server lives");
}

#[test]
fn plain_http_on_the_tls_port_and_broken_records_end_that_connection_alone() {
    let lab = Lab::start(Driver::Mio, 1_000);
    let addr = lab.engine.as_ref().unwrap().bound.https[0];
    let mut good = lab.https(1);
    for bytes in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3], &[0x80; 5000]]
    {
        let mut stream = TcpStream::connect(SocketAddr::V4(addr)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 64, "an alert at most: {}", answer.escape_ascii());
    }
    let (head, _) = get(&mut good, "/healthz", "");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(lab.metric("bootstorm_https_handshakes_total{outcome=\"not-tls\"}") >= 2);
}
