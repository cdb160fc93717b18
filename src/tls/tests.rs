//! Sessions in memory, and certificates on a disk.

use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::client::{self, VERSIONS};
use super::*;

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(word: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bootstorm-tls-{word}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn own(&self) -> Source {
        Source::Own { folder: self.0.join("https"), host: Some("deploy.example".into()) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join("https").join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Carries records both ways until neither side has any; what each side was told is appended to its list.
fn carry(
    client: &mut rustls::ClientConnection,
    server: &mut Session,
    heard: &mut Vec<u8>,
    got: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let mut wire = Vec::new();
    loop {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        // In uneven pieces: records know nothing of segments.
        for piece in wire.chunks(777) {
            server.receive(piece, heard)?;
        }
        let sent = !wire.is_empty();
        wire.clear();
        while server.wants_write() {
            server.flush(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(|_| Refusal::Broken)?;
            // All there is, and then that there may be more.
            let _ = client.reader().read_to_end(got);
        }
        if !sent && wire.is_empty() {
            return Ok(());
        }
    }
}

#[test]
fn both_versions_carry_bytes_both_ways_whole() {
    let folder = Folder::new("pair");
    let certificates = Certificates::open(folder.own(), &[]).unwrap();
    for (version, word) in VERSIONS.into_iter().zip(["1.2", "1.3"]) {
        let config = client::config(&folder.file(AUTHORITY_FILE), version);
        for name in ["127.0.0.1", "localhost", "deploy.example"] {
            let mut client = client::session(&config, name);
            let mut server = Session::new(&certificates.config()).unwrap();
            let mut heard = Vec::new();
            assert!(server.is_handshaking() && server.version().is_none());
            carry(&mut client, &mut server, &mut heard, &mut Vec::new()).unwrap();
            assert!(!server.is_handshaking());
            assert_eq!(server.version(), Some(word));
            let content: Vec<u8> = (0..200_000u32).map(|i| (i * 7) as u8).collect();
            client.writer().write_all(&content[..50_000]).unwrap();
            server.seal(&content);
            server.close();
            let mut got = Vec::new();
            carry(&mut client, &mut server, &mut heard, &mut got).unwrap();
            assert!(heard == content[..50_000] && got == content);
            assert_eq!(client.reader().read(&mut [0]).expect("an end that was said"), 0);
        }
    }
}

#[test]
fn what_is_no_tls_is_told_from_what_is_incompatible() {
    let folder = Folder::new("refusals");
    let certificates = Certificates::open(folder.own(), &[]).unwrap();
    let mut heard = Vec::new();
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 64], b"SSH-2.0-OpenSSH_9.2\r\n"] {
        let mut server = Session::new(&certificates.config()).unwrap();
        assert_eq!(server.receive(bytes, &mut heard), Err(Refusal::NotTls), "{}", bytes.escape_ascii());
    }
    // A client of 2019 with RSA and DHE key exchange alone, as iPXE then was.
    let mut hello = vec![0x03, 0x03];
    hello.extend([0x11; 32]);
    hello.push(0);
    hello.extend([0, 4, 0x00, 0x9c, 0x00, 0x9e, 1, 0]);
    hello.extend([0, 12, 0x00, 0x0d, 0, 8, 0, 6, 4, 1, 5, 1, 6, 1]);
    let body_len = hello.len();
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend(((body_len + 4) as u16).to_be_bytes());
    record.push(1);
    record.extend(&(body_len as u32).to_be_bytes()[1..]);
    record.extend(hello);
    let mut server = Session::new(&certificates.config()).unwrap();
    assert_eq!(server.receive(&record, &mut heard), Err(Refusal::Incompatible));
    assert!(server.wants_write(), "an alert tells it");
    // A client that does not trust the authority says so itself.
    let other = Folder::new("other");
    Certificates::open(other.own(), &[]).unwrap();
    let config = client::config(&other.file(AUTHORITY_FILE), VERSIONS[1]);
    let (mut client, mut server) =
        (client::session(&config, "localhost"), Session::new(&certificates.config()).unwrap());
    assert!(carry(&mut client, &mut server, &mut heard, &mut Vec::new()).is_err());
    let mut alert = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut alert).unwrap();
    }
    assert_eq!(server.receive(&alert, &mut heard), Err(Refusal::Alert));
    assert!(heard.is_empty());
}

#[test]
fn an_own_authority_is_made_once_and_follows_the_addresses() {
    let folder = Folder::new("own");
    let made = Certificates::open(folder.own(), &[Ipv4Addr::new(10, 77, 0, 1)]).unwrap();
    let mode = |name: &str| fs::metadata(folder.file(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca.key"), mode("server.key"), mode("ca.pem")), (0o600, 0o600, 0o644));
    assert_eq!(fs::metadata(folder.0.join("https")).unwrap().permissions().mode() & 0o777, 0o700);
    let (authority, leaf) =
        (fs::read(folder.file("ca.pem")).unwrap(), fs::read(folder.file("server.pem")).unwrap());
    assert!(leaf.ends_with(&authority), "who knows its anchors by fingerprint is shown them");
    let names = || fs::read_to_string(folder.file("server.names")).unwrap();
    assert_eq!(names(), "deploy.example\nlocalhost\n10.77.0.1\n127.0.0.1\n");
    assert_eq!(made.look(&[Ipv4Addr::new(10, 77, 0, 1)]), Ok(false));
    assert_eq!(made.look(&[Ipv4Addr::new(10, 78, 0, 1)]), Ok(true), "a new address needs a new certificate");
    assert_eq!(names(), "deploy.example\nlocalhost\n10.78.0.1\n127.0.0.1\n");
    assert_eq!(made.look(&[Ipv4Addr::new(10, 78, 0, 1)]), Ok(false));
    drop(made);
    Certificates::open(folder.own(), &[Ipv4Addr::new(10, 78, 0, 1)]).unwrap();
    assert_eq!(fs::read(folder.file("ca.pem")).unwrap(), authority, "machines trust it: it stays");
    // Half of it lost: the certificate is made again from the key, and is the same authority.
    fs::remove_file(folder.file("server.pem")).unwrap();
    let again = Certificates::open(folder.own(), &[]).unwrap();
    let config = client::config(&folder.file(AUTHORITY_FILE), VERSIONS[1]);
    let (mut client, mut server) =
        (client::session(&config, "127.0.0.1"), Session::new(&again.config()).unwrap());
    carry(&mut client, &mut server, &mut Vec::new(), &mut Vec::new()).unwrap();
}

#[test]
fn a_replaced_certificate_is_taken_and_a_bad_one_is_named_once() {
    let (one, two) = (Folder::new("one"), Folder::new("two"));
    for folder in [&one, &two] {
        Certificates::open(folder.own(), &[]).unwrap();
    }
    let (certificate, key) = (one.0.join("shown.pem"), one.0.join("shown.key"));
    let take = |from: &Folder, pem: bool, secret: bool| {
        if pem {
            fs::write(&certificate, fs::read(from.file("server.pem")).unwrap()).unwrap();
        }
        if secret {
            fs::write(&key, fs::read(from.file("server.key")).unwrap()).unwrap();
        }
    };
    take(&one, true, true);
    let source = Source::Files { certificate: certificate.clone(), key: key.clone() };
    let shown = Certificates::open(source.clone(), &[]).unwrap();
    let trusts = |folder: &Folder| {
        let config = client::config(&folder.file(AUTHORITY_FILE), VERSIONS[1]);
        let (mut client, mut server) =
            (client::session(&config, "localhost"), Session::new(&shown.config()).unwrap());
        carry(&mut client, &mut server, &mut Vec::new(), &mut Vec::new()).is_ok()
    };
    assert!(trusts(&one) && !trusts(&two));
    assert_eq!(shown.look(&[]), Ok(false));
    // Half replaced, as a copy under way is: the old one stays, and the mistake is said once.
    take(&two, true, false);
    let error = shown.look(&[]).unwrap_err().to_string();
    assert!(error.contains("shown.key: not the key of") && error.contains("shown.pem"), "{error}");
    assert_eq!(shown.look(&[]), Ok(false));
    assert!(trusts(&one));
    take(&two, false, true);
    assert_eq!(shown.look(&[]), Ok(true));
    assert!(trusts(&two) && !trusts(&one));
    fs::remove_file(&key).unwrap();
    assert!(shown.look(&[]).unwrap_err().to_string().contains("No such file"));
    assert!(trusts(&two));
    fs::write(&key, "nonsense").unwrap();
    assert!(Certificates::open(source, &[]).is_err());
}
