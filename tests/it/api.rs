//! The admin API on the real binary: tokens over TCP, who may use the socket, bulk orders, streams that resume, and a
//! fuzzer that knows the API's own document.

use std::fs;
use std::process::Command;
use std::time::Duration;

use labkit::{Process, run, tool};

use crate::server::{FULL, Net, SOON, Server, Site};

const API: &str = "http://127.0.0.1:8081";

/// A site with one image that boots and wipes nothing.
fn site(net: &Net) -> Site {
    let site = Site::new(net.interface, "auto", FULL);
    let folder = site.dir.join("images/hello");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("boot.ipxe"), "#!ipxe\necho hello\n").expect("a script");
    site
}

/// A request by curl inside the server's namespace: status, then headers and body.
fn curl(net: &Net, words: &[&str]) -> (u16, String) {
    let text =
        run(net.server.command(tool("curl", "curl")).args(["-sS", "-i", "--max-time", "60"]).args(words));
    let status = text.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    (status.unwrap_or_else(|| panic!("no status in {text}")), text)
}

fn token(site: &Site, role: &str) -> String {
    let text = site.ask(&["token", "add", "--role", role, "--name", role]);
    text.lines().find(|line| line.starts_with("bst-")).expect("a token is printed").to_owned()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

fn kill(mut server: Server<'_>) {
    server.process.signal("KILL");
    server.process.wait(SOON);
}

#[test]
fn a_token_works_by_its_role_survives_a_kill_and_ends_when_it_is_revoked() {
    let net = Net::flat();
    let site = site(&net);
    let server = site.serve(&net);
    let jobs = format!("{API}/v1/jobs");
    assert_eq!(curl(&net, &[&format!("{API}/healthz")]).0, 200);
    assert_eq!(curl(&net, &[&format!("{API}/metrics")]).0, 200);
    assert_eq!(curl(&net, &[&jobs]).0, 401);
    let (reader, operator) = (bearer(&token(&site, "read")), token(&site, "operate"));
    let body = r#"{"action": {"image": "hello"}, "selector": {"mac": "52:54:00:00:00:01"}}"#;
    assert_eq!(curl(&net, &["-H", &reader, &jobs]).0, 200);
    assert_eq!(curl(&net, &["-H", &reader, "-d", body, &jobs]).0, 403);
    let header = bearer(&operator);
    let (status, text) = curl(&net, &["-H", &header, "-d", body, &jobs]);
    assert_eq!(status, 201, "{text}");
    assert!(text.to_lowercase().contains("etag: \"1\"") && text.contains("\"stage\":\"armed\""), "{text}");
    kill(server);
    let server = site.serve(&net);
    // The commands' own way to another host.
    let mut far = net.server.command(crate::server::binary());
    let far = run(far.args(["job", "list", "--api", API]).env("BOOTSTORM_TOKEN", &operator));
    assert!(far.contains("j1") && far.contains("hello"), "{far}");
    let (status, text) =
        curl(&net, &["-H", &header, "-X", "DELETE", "-H", "If-Match: \"9\"", &format!("{jobs}/j1")]);
    assert_eq!(status, 412, "{text}");
    let (status, text) =
        curl(&net, &["-H", &header, "-X", "DELETE", "-H", "If-Match: \"1\"", &format!("{jobs}/j1")]);
    assert_eq!(status, 200, "{text}");
    site.ask(&["token", "revoke", &operator[4..12]]);
    assert_eq!(curl(&net, &["-H", &header, &jobs]).0, 401);
    let audit = site.ask(&["audit", "list"]);
    for wanted in ["token operate (", "job-cancelled", "token-revoked", "uid 0 (root)"] {
        assert!(audit.contains(wanted), "no {wanted} in\n{audit}");
    }
    assert!(site.ask(&["audit", "verify"]).contains("is whole"));
    server.stop();
}

#[test]
fn the_socket_is_for_its_group_even_when_its_mode_was_loosened() {
    let net = Net::flat();
    let site = site(&net);
    let server = site.serve(&net);
    let socket = site.dir.join("state/admin.sock");
    let mode = |of: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(of).expect("a socket").permissions()) & 0o777
    };
    assert_eq!(mode(&socket), 0o660);
    let ask_as = |ids: &[&str]| {
        let mut command = Command::new(tool("setpriv", "util-linux"));
        command.args(ids).arg(tool("curl", "curl"));
        command.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--unix-socket"]).arg(&socket);
        let output = command.arg("http://localhost/v1/jobs").output().expect("setpriv runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let ask = |ids: [&str; 2]| ask_as(&[ids[0], ids[1], "--clear-groups"]);
    for folder in ["", "state"] {
        let folder = site.dir.join(folder);
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a folder");
    }
    let (stranger, member) = (["--reuid=65534", "--regid=65534"], ["--reuid=65534", "--regid=0"]);
    assert_eq!(ask(stranger), "000", "the file's mode keeps strangers out");
    assert_eq!(ask(member), "200");
    fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("a socket");
    assert_eq!(ask(stranger), "403", "and so does the server");
    // A group that no file names: what the kernel says of the peer counts.
    std::os::unix::fs::chown(&socket, None, Some(64_242)).expect("a socket");
    assert_eq!(ask(member), "403");
    assert_eq!(ask_as(&["--reuid=65534", "--regid=65534", "--groups=64241,64242"]), "200");
    std::os::unix::fs::chown(&socket, None, Some(65_534)).expect("a socket");
    assert_eq!(ask(stranger), "200", "a group that was given the socket is let in without a restart");
    server.stop();
}

#[test]
fn ten_thousand_rows_are_added_at_once_or_none() {
    let net = Net::flat();
    let site = site(&net);
    let server = site.serve(&net);
    let file = site.dir.join("jobs.csv");
    let row = |n: u32| format!("hello,02:00:00:00:{:02x}:{:02x}\n", n >> 8, n & 255);
    let mut rows: Vec<String> = (0..10_000).map(row).collect();
    rows[6_000] = "nothere,02:00:00:01:00:00\n".into();
    fs::write(&file, format!("image,mac\n{}", rows.concat())).expect("a file");
    let add = |words: &[&str]| {
        site.command(&[&["job", "add", "--csv", file.to_str().expect("UTF-8")], words].concat())
    };
    let refused = add(&[]);
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("jobs.csv:6002: ") && text.contains("nothere"), "{text}");
    assert!(site.ask(&["job", "list"]).contains("no such jobs"));
    rows[6_000] = row(6_000);
    rows[7] = "hello,nonsense\n".into();
    fs::write(&file, format!("image,mac\n{}", rows.concat())).expect("a file");
    let text = String::from_utf8_lossy(&add(&[]).stderr).into_owned();
    assert!(text.contains("jobs.csv:9: ") && text.contains("nothing was added"), "{text}");
    rows[7] = row(7);
    fs::write(&file, format!("image,mac\n{}", rows.concat())).expect("a file");
    let added = add(&["--expires", "1d", "--json"]);
    assert!(added.status.success(), "{added:?}");
    let answer = String::from_utf8_lossy(&added.stdout).into_owned();
    assert!(answer.contains("\"added\": 10000") && answer.contains("\"j10000\""), "{}", &answer[..200]);
    let job = site.ask(&["job", "show", "j6001", "--json"]);
    assert!(job.contains("02:00:00:00:17:70") && job.contains("86400s"), "{job}");
    kill(server);
    let server = site.serve(&net);
    let jobs = site.ask(&["job", "list", "--json"]);
    assert_eq!(jobs.matches("\"stage\": \"armed\"").count(), 10_000, "all of them are on the disk");
    server.stop();
}

#[test]
fn a_stream_resumes_where_it_broke_off_across_a_killed_server() {
    let net = Net::flat();
    let site = site(&net);
    let server = site.serve(&net);
    let header = bearer(&token(&site, "read"));
    let follow = |name: &str, more: &[&str]| {
        let mut command = net.server.command(tool("curl", "curl"));
        command.args(["-sS", "-N", "-H", &header]).args(more).arg(format!("{API}/v1/events/stream?after=0"));
        Process::spawn("curl", &mut command, &site.dir.join(name))
    };
    // A job that is offered is an event.
    let boot = |n: u32| {
        let mac = format!("52:54:00:00:00:{n:02x}");
        site.ask(&["job", "add", "hello", "--mac", &mac]);
        let url = format!("http://10.77.0.1:4433/ipxe?mac={mac}&platform=pcbios&buildarch=i386&longmode=1");
        run(net.server.command(tool("curl", "curl")).args(["-sS", "-f", "-A", "iPXE/1.21.1", &url]));
    };
    boot(1);
    let mut stream = follow("first", &[]);
    stream.wait_for("id: 1", SOON);
    stream.wait_for("\"subject\":\"j1\"", SOON);
    let last = stream.output().lines().rev().find_map(|line| line.strip_prefix("id: ")?.parse::<u64>().ok());
    let last = last.expect("an event has a number");
    kill(server);
    let server = site.serve(&net);
    boot(2);
    let mut stream = follow("second", &["-H", &format!("Last-Event-ID: {last}")]);
    stream.wait_for("\"subject\":\"j2\"", SOON);
    let text = stream.output();
    assert!(text.contains(&format!("id: {}", last + 1)), "{text}");
    assert!(!text.contains("id: 1\n") && !text.contains("event: gap"), "nothing comes twice: {text}");
    server.stop();
}

#[test]
fn a_repeated_order_makes_one_job() {
    let net = Net::flat();
    let site = site(&net);
    let server = site.serve(&net);
    let header = bearer(&token(&site, "operate"));
    let body = r#"{"action": {"image": "hello"}, "selector": {"mac": "52:54:00:00:00:01"}}"#;
    let order = || {
        let words = ["-H", &header, "-H", "Idempotency-Key: 4711", "-d", body, &format!("{API}/v1/jobs")];
        let (status, text) = curl(&net, &words);
        let (head, document) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert_eq!(status, 201, "{text}");
        (head.to_lowercase().contains("idempotency-replayed: true"), document.to_owned())
    };
    let (first, again) = (order(), order());
    assert_eq!((first.0, again.0), (false, true));
    assert_eq!(first.1, again.1);
    assert_eq!(site.ask(&["job", "list"]).matches("armed").count(), 1);
    server.stop();
}

#[test]
#[ignore = "a minute and a half, and needs schemathesis: tools/test --all runs it"]
fn a_fuzzer_that_knows_the_document_finds_no_failure() {
    let net = Net::flat();
    let site = site(&net);
    let server = site.serve(&net);
    for n in 1..=3 {
        site.ask(&["job", "add", "hello", "--mac", &format!("52:54:00:00:00:0{n}")]);
        site.ask(&["machine", "set", &format!("52:54:00:00:00:0{n}"), "--group", "lab"]);
    }
    let header = bearer(&token(&site, "admin"));
    let document = site.dir.join("openapi.json");
    let curl = tool("curl", "curl");
    run(net
        .server
        .command(&curl)
        .args(["-sS", "-f", "-H", &header, "-o"])
        .arg(&document)
        .arg(format!("{API}/v1/openapi.json")));
    let fuzzer = std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|folder| folder.join("schemathesis"))
        .find(|file| file.is_file())
        .expect("schemathesis is missing: pip install schemathesis (tools/test --all does)");
    let mut command = net.server.command(fuzzer);
    // The stream never ends, and a fuzzer that revokes its own token finds only 401.
    command.arg("run").arg(&document).args(["--url", API, "-H", &header]);
    command.args(["--exclude-path", "/v1/events/stream", "--exclude-operation-id", "tokens.revoke"]);
    command.args(["-n", "60", "--max-time", "90", "--continue-on-failure", "--request-timeout", "10"]);
    command.args([
        "--checks",
        "not_a_server_error,response_schema_conformance,content_type_conformance,status_code_conformance",
    ]);
    let mut process =
        Process::spawn("schemathesis", command.current_dir(&site.dir.0), &site.dir.join("fuzz.log"));
    let status = process.wait(Duration::from_secs(300));
    let text = process.output();
    let mut tail: Vec<&str> = text.lines().rev().take(80).collect();
    tail.reverse();
    assert!(status.success(), "{status}\n{}", tail.join("\n"));
    assert_eq!(curl_status(&net, &header), 200, "the server still answers");
    server.stop();
}

fn curl_status(net: &Net, header: &str) -> u16 {
    curl(net, &["-H", header, &format!("{API}/v1/jobs")]).0
}
