//! The API as a router without sockets, and its listeners over real ones.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::auth::Origin;
use super::client::{Client, ClientError};
use super::tokens::Wish;
use super::*;
use crate::files::library::Settings;
use crate::jobs::book::AtTheLine;
use crate::jobs::machine::Ident;
use crate::jobs::script::{Context, Hints, Policy, compose_explained};
use crate::jobs::token::BootId;
use crate::keeper::{Answer as Passed, Desk, Running};
use crate::store::{Kind, Log, MemoryStore, SharedStore, Transition, Write};

/// A server without listeners.
struct Lab {
    dir: PathBuf,
    state: Arc<State>,
    /// Whether a core has ended.
    faulty: Arc<AtomicBool>,
    admin: Arc<Admin>,
    router: Router,
    runtime: tokio::runtime::Runtime,
    _keeper: Running,
}

/// What came back.
#[derive(Debug)]
struct Got {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Got {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    #[track_caller]
    fn must(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    #[track_caller]
    fn refused(self, status: u16, code: &str) {
        assert_eq!((self.status, self.code()), (status, code), "{}", self.body);
    }
}

fn remote() -> Origin {
    Origin::Remote("192.0.2.7:4000".parse().expect("an address"))
}

fn root() -> Origin {
    Origin::Local { who: "uid 0 (root)".into(), admitted: true }
}

impl Lab {
    fn start() -> Self {
        Self::with_store(Box::new(MemoryStore::new()))
    }

    fn with_store(store: Box<dyn Store>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("bootstorm-api-{}-{number}", std::process::id()));
        for (image, script, toml) in
            [("hello", true, ""), ("empty", false, ""), ("wipe", true, "destructive = true\n")]
        {
            let folder = dir.join("images").join(image);
            std::fs::create_dir_all(&folder).unwrap();
            if script {
                std::fs::write(folder.join("boot.ipxe"), "#!ipxe\necho hello\n").unwrap();
            }
            if !toml.is_empty() {
                std::fs::write(folder.join("image.toml"), toml).unwrap();
            }
        }
        let library = Arc::new(
            Library::open(Settings {
                images_dir: dir.join("images"),
                trees: Vec::new(),
                loader_dirs: Vec::new(),
                bios: Vec::new(),
                uefi_x64: Vec::new(),
                uefi_ia32: Vec::new(),
                uefi_arm64: Vec::new(),
                wimboot: Vec::new(),
            })
            .unwrap(),
        );
        let images = Arc::clone(&library);
        let keeper =
            Keeper::start(store, Box::new(move || images.snapshot()), [7; 32], Box::new(|_| {})).unwrap();
        let (handle, images) = (keeper.keeper().clone(), Arc::clone(&library));
        let faulty = Arc::new(AtomicBool::new(false));
        let state = Arc::new(State {
            keeper: keeper.keeper().clone(),
            library,
            history: Arc::new(History::default()),
            alarms: Arc::default(),
            script: Box::new(move |who| {
                let context = Context {
                    base_url: "http://192.0.2.1:4433",
                    boot: BootId(1),
                    key: handle.key(),
                    now_unix: 0,
                    policy: &Policy::default(),
                    hints: Hints::default(),
                };
                compose_explained(&handle.table().view(), &**images.load(), who, &context)
            }),
            reload: Box::new(|_| Ok(Reloaded { changed: vec!["policy"], noted: Err(Refusal::Busy) })),
            ready: Box::new({
                let faulty = Arc::clone(&faulty);
                move || match faulty.load(Ordering::Relaxed) {
                    true => Err("1 of 2 cores ended by a fault".into()),
                    false => Ok(()),
                }
            }),
            metrics: Box::new(|| "bootstorm_x 1\n".into()),
            folder: dir.clone(),
        });
        let admin = Arc::new(Admin::new(Arc::clone(&state)).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let router = routes::router(Arc::clone(&admin));
        Self { dir, state, faulty, admin, router, runtime, _keeper: keeper }
    }

    /// A token's text.
    fn token(&self, role: Role, name: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let mut random = [role as u8; 36];
        random[..4].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let (tokens, name) = (self.admin.tokens.clone(), name.to_owned());
        let added = self.state.keeper.look_and_wait(move |_, store| {
            tokens.add(&Wish { name, role, lasts: None }, random, "test", store, SystemTime::now())
        });
        added.unwrap().unwrap().0
    }

    fn send(
        &self,
        origin: Origin,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> axum::response::Response {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "Host") {
            request = request.header("Host", "127.0.0.1:8081");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::from(body)).unwrap();
        request.extensions_mut().insert(origin);
        self.runtime.block_on(self.router.clone().oneshot(request)).unwrap()
    }

    fn ask(&self, origin: Origin, method: &str, path: &str, headers: &[(&str, &str)], body: String) -> Got {
        let response = self.send(origin, method, path, headers, body);
        let (parts, body) = response.into_parts();
        let bytes = self.runtime.block_on(to_bytes(body, usize::MAX)).unwrap();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Got { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// As root on the socket.
    fn local(&self, method: &str, path: &str, body: Value) -> Got {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask(root(), method, path, &[], body)
    }

    fn local_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: String) -> Got {
        self.ask(root(), method, path, headers, body)
    }

    fn with_token(&self, token: &str, method: &str, path: &str, body: Value) -> Got {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask(remote(), method, path, &[("Authorization", &format!("Bearer {token}"))], body)
    }

    fn say(&self, count: usize) {
        self.state
            .keeper
            .look_and_wait(move |_, store| {
                let entry = |n: usize| Write::Append {
                    log: Log::Event,
                    at_unix_ms: n as u64,
                    subject: "j1".into(),
                    body: json!({ "n": n }).to_string(),
                };
                store
                    .commit(&[Transition { writes: (0..count).map(entry).collect() }])
                    .unwrap()
                    .pop()
                    .unwrap()
                    .unwrap();
            })
            .unwrap();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn mac(n: u32) -> String {
    format!("02:00:00:{:02x}:{:02x}:{:02x}", n >> 16 & 255, n >> 8 & 255, n & 255)
}

fn hello(n: u32) -> Value {
    json!({ "action": { "image": "hello" }, "selector": { "mac": mac(n) } })
}

/// Every documented operation: method, path with its variables filled in, and the role it says it needs.
fn operations() -> Vec<(String, String, Option<Role>)> {
    let document = routes::document();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let filled = path
            .replace("/jobs/{id}", "/jobs/j99")
            .replace("/tokens/{id}", "/tokens/00000000")
            .replace("{claim}", "c1")
            .replace("/machines/{id}", "/machines/m99")
            .replace("{name}", "hello");
        assert!(!filled.contains('{'), "{filled}");
        for (method, operation) in item.as_object().unwrap() {
            let role = operation["security"][0]["token"][0].as_str().map(|role| role.parse().unwrap());
            all.push((method.to_uppercase(), filled.clone(), role));
        }
    }
    all
}

#[test]
fn a_job_is_added_listed_shown_cancelled_and_armed_again() {
    let lab = Lab::start();
    let spec = json!({ "action": { "image": "hello" }, "selector": { "mac": "52-54-00-00-00-01" } });
    let added = lab.local("POST", "/v1/jobs", spec.clone());
    assert_eq!((added.header("location"), added.header("etag")), ("/v1/jobs/j1", "\"1\""));
    let job = added.must(201);
    assert_eq!(
        (job["stage"].as_str(), job["selector"]["mac"].as_str()),
        (Some("armed"), Some("52:54:00:00:00:01"))
    );
    lab.local("POST", "/v1/jobs", spec).refused(409, "machine-has-job");
    assert_eq!(lab.local("GET", "/v1/jobs", Value::Null).must(200)["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(lab.local("GET", "/v1/jobs/j1", Value::Null).must(200)["id"], "j1");
    assert_eq!(lab.local("DELETE", "/v1/jobs/j1", Value::Null).must(200)["stage"], "cancelled");
    lab.local("DELETE", "/v1/jobs/j1", Value::Null).refused(409, "job-ended");
    assert_eq!(lab.local("POST", "/v1/jobs/j1/rearm", Value::Null).must(200)["stage"], "armed");
    lab.local("POST", "/v1/jobs/j1/confirm", Value::Null).refused(409, "job-not-running");
    assert_eq!(lab.local("GET", "/v1/jobs/j1/claims", Value::Null).must(200), json!({ "claims": [] }));
}

#[test]
fn what_makes_no_sense_is_refused_with_a_word_and_a_reason() {
    let lab = Lab::start();
    for (spec, status, code) in [
        (json!({}), 400, "not-a-job"),
        (json!({ "action": "local", "selector": { "mac": "nonsense" } }), 400, "not-a-job"),
        (json!({ "action": "local", "selector": { "mac": mac(1) }, "x": 1 }), 400, "not-a-job"),
        (json!({ "action": { "image": "nothere" }, "selector": { "mac": mac(1) } }), 422, "unknown-image"),
        (json!({ "action": { "image": "empty" }, "selector": { "mac": mac(1) } }), 422, "image-cannot-boot"),
        (json!({ "action": "local", "selector": { "mac": mac(1) }, "attempts": 0 }), 422, "no-attempts"),
        (json!({ "action": "local", "selector": { "serial": "x".repeat(200) } }), 400, "not-a-job"),
        (json!({ "action": "local", "selector": { "serial": "x\u{1b}[2J" } }), 400, "not-a-job"),
        (
            json!({ "action": "local", "selector": { "rule": { "group": "x".repeat(200) } } }),
            400,
            "not-a-job",
        ),
        (json!({ "action": { "image": "x".repeat(300) }, "selector": "any" }), 400, "not-a-job"),
    ] {
        lab.local("POST", "/v1/jobs", spec).refused(status, code);
    }
    for (method, path, status, code) in [
        ("GET", "/v1/jobs/j99", 404, "job-not-found"),
        ("GET", "/v1/jobs/x", 400, "not-a-job-id"),
        ("GET", "/v1/jobs?limit=0", 400, "not-a-limit"),
        ("GET", "/v1/jobs?limit=1001", 400, "not-a-limit"),
        ("GET", "/v1/jobs?limit=many", 400, "not-a-query"),
        ("GET", "/v1/jobs?stage=asleep", 400, "not-a-stage"),
        ("GET", "/v1/jobs?after=m1", 400, "not-a-job-id"),
        ("GET", "/v1/nothing", 404, "no-such-path"),
        ("PUT", "/v1/jobs", 405, "no-such-method"),
        ("GET", "/v1/machines/%ff", 400, "not-a-path"),
        ("GET", "/v1/machines/m7", 404, "machine-not-found"),
        ("GET", "/v1/images/nothere", 404, "unknown-image"),
        ("GET", "/v1/boots?machine=x", 400, "not-a-machine"),
        ("GET", "/v1/explain?machine=x", 400, "not-a-machine"),
        ("GET", "/v1/explain?machine=52:54:00:00:00:01&last=0", 400, "not-a-limit"),
        ("GET", "/v1/boots/pcap?machine=52:54:00:00:00:01", 404, "no-packets"),
        ("DELETE", "/v1/jobs/j1/claims/x", 400, "not-a-claim-id"),
        ("DELETE", "/v1/jobs/j1/claims/c1", 404, "claim-not-found"),
        ("DELETE", "/v1/tokens/00000000", 404, "token-not-found"),
    ] {
        let got = lab.local(method, path, Value::Null);
        assert_eq!(got.header("content-type"), "application/problem+json", "{path}");
        got.refused(status, code);
    }
    assert_eq!(lab.local("GET", "/v1/jobs", Value::Null).must(200)["jobs"], json!([]));
}

#[test]
fn a_body_that_is_no_text_or_too_long_is_a_problem_too() {
    let lab = Lab::start();
    let send = |bytes: Vec<u8>| {
        let request = Request::post("/v1/jobs").header("Host", "localhost").body(Body::from(bytes)).unwrap();
        let mut request = request;
        request.extensions_mut().insert(root());
        let response = lab.runtime.block_on(lab.router.clone().oneshot(request)).unwrap();
        (response.status().as_u16(), response.headers()["content-type"].to_str().unwrap().to_owned())
    };
    assert_eq!(send(vec![0xff, 0xfe]), (400, "application/problem+json".into()));
    assert_eq!(send(vec![b' '; BODY_MAX + 1]), (413, "application/problem+json".into()));
}

#[test]
fn jobs_are_listed_by_pages_and_filters() {
    let lab = Lab::start();
    for n in 0..5 {
        lab.local("POST", "/v1/jobs", hello(n)).must(201);
    }
    let local = json!({ "action": "local", "selector": { "serial": "A 1" } });
    lab.local("POST", "/v1/jobs", local).must(201);
    lab.local("DELETE", "/v1/jobs/j2", Value::Null).must(200);
    let ids = |query: &str| -> Vec<String> {
        let page = lab.local("GET", &format!("/v1/jobs?{query}"), Value::Null).must(200);
        page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect()
    };
    let first = lab.local("GET", "/v1/jobs?limit=4", Value::Null).must(200);
    assert_eq!(first["next"], "j4");
    assert_eq!(ids("limit=4&after=j4"), ["j5", "j6"]);
    assert_eq!(lab.local("GET", "/v1/jobs?limit=2&after=j4", Value::Null).must(200)["next"], Value::Null);
    assert_eq!(ids("stage=cancelled"), ["j2"]);
    assert_eq!(ids("live=false"), ["j2"]);
    assert_eq!(ids("image=hello&live=true"), ["j1", "j3", "j4", "j5"]);
    assert_eq!(ids("machine=02-00-00-00-00-03"), ["j4"]);
    assert_eq!(ids("machine=A%201"), ["j6"]);
}

#[test]
fn if_match_keeps_an_order_from_what_has_changed() {
    let lab = Lab::start();
    lab.local("POST", "/v1/jobs", hello(1)).must(201);
    let cancel = |tag: &str| lab.local_with("DELETE", "/v1/jobs/j1", &[("If-Match", tag)], String::new());
    cancel("\"7\"").refused(412, "changed-meanwhile");
    cancel("nonsense").refused(400, "not-an-etag");
    let job = cancel("\"1\"").must(200);
    let stale = lab.local_with("POST", "/v1/jobs/j1/rearm", &[("If-Match", "\"1\"")], String::new());
    stale.refused(412, "changed-meanwhile");
    let tag = format!("\"{}\"", job["generation"]);
    lab.local_with("POST", "/v1/jobs/j1/rearm", &[("If-Match", &tag)], String::new()).must(200);
}

/// Hears which boots passed.
#[derive(Debug)]
struct Line(crossbeam_channel::Sender<Passed>);

impl Desk for Line {
    fn answer(&self, _: u64, answer: Passed) {
        self.0.send(answer).unwrap();
    }
}

#[test]
fn a_rule_that_wiped_several_machines_is_re_armed_for_all_of_them_only_by_name() {
    let lab = Lab::start();
    let spec = json!({ "action": { "image": "wipe" }, "selector": "any", "allow_rule": true });
    lab.local("POST", "/v1/jobs", spec).must(201);
    let (sender, passed) = crossbeam_channel::unbounded();
    let desk: Arc<dyn Desk> = Arc::new(Line(sender));
    let keeper = &lab.state.keeper;
    for n in 1..=2 {
        let idents = vec![Ident::Serial(format!("SN-{n}"))];
        let (boot, job) = (keeper.boots().begin(), "j1".parse().unwrap());
        let (image, what) = ("wipe".to_owned(), "the last of boot.ipxe".to_owned());
        keeper.ask(AtTheLine { boot, job, image, what, idents, once: None, changed: false }, n, &desk);
        let answer = passed.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(answer, Passed::Go);
    }
    let rearm = |query: &str| lab.local("POST", &format!("/v1/jobs/j1/rearm{query}"), Value::Null);
    for query in ["", "?all=false"] {
        let refused = rearm(query);
        assert!(refused.body["detail"].as_str().unwrap().contains("?all=true"), "{}", refused.body);
        refused.refused(409, "rearm-needs-all");
    }
    let claims = || lab.local("GET", "/v1/jobs/j1/claims", Value::Null).must(200)["claims"].clone();
    assert_eq!(claims().as_array().unwrap().len(), 2, "nothing was re-armed");
    let one = format!("/v1/jobs/j1/claims/{}", claims()[0]["id"].as_str().unwrap());
    lab.local("DELETE", &one, Value::Null).must(204);
    // One machine is left that had it: it alone gets it again.
    rearm("").must(200);
    assert_eq!(claims(), json!([]));
}

#[test]
fn ten_thousand_jobs_are_added_at_once_or_none() {
    let lab = Lab::start();
    let mut jobs: Vec<Value> = (0..10_000).map(hello).collect();
    let added = lab.local("POST", "/v1/jobs/bulk", json!({ "jobs": jobs })).must(201);
    assert_eq!((added["added"].as_u64(), added["ids"].as_array().unwrap().len()), (Some(10_000), 10_000));
    assert_eq!((&added["ids"][0], &added["ids"][9_999]), (&json!("j1"), &json!("j10000")));
    // Again: each of them has a job already.
    let refused = lab.local("POST", "/v1/jobs/bulk", json!({ "jobs": jobs }));
    assert_eq!((refused.status, refused.code()), (422, "rows-refused"));
    assert_eq!(refused.body["errors_total"], 10_000);
    assert_eq!(refused.body["errors"].as_array().unwrap().len(), 100);
    // New machines, of which two rows are wrong: nothing is added.
    jobs = (20_000..20_100).map(hello).collect();
    jobs[41] = json!({ "action": { "image": "nothere" }, "selector": { "mac": mac(41) } });
    jobs[77] = jobs[76].clone();
    let refused = lab.local("POST", "/v1/jobs/bulk", json!({ "jobs": jobs }));
    assert_eq!(refused.body["errors"][0]["row"], 78, "{}", refused.body);
    jobs[77] = hello(5);
    let refused = lab.local("POST", "/v1/jobs/bulk", json!({ "jobs": jobs }));
    let rows: Vec<(u64, &str)> = refused.body["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["row"].as_u64().unwrap(), row["code"].as_str().unwrap()))
        .collect();
    assert_eq!(rows, [(42, "unknown-image"), (78, "machine-has-job")]);
    let last = lab.local("GET", "/v1/jobs?after=j9999", Value::Null).must(200);
    assert_eq!(last["jobs"].as_array().unwrap().len(), 1, "{last}");
    // A refused order has used up no number either.
    assert_eq!(lab.local("POST", "/v1/jobs", hello(20_000)).must(201)["id"], "j10001");
}

#[test]
fn bulk_takes_csv_and_refuses_nonsense() {
    let lab = Lab::start();
    let csv = |body: &str| {
        lab.local_with("POST", "/v1/jobs/bulk", &[("Content-Type", "text/csv; charset=utf-8")], body.into())
    };
    let added = csv("image,mac,expires\nhello,02:00:00:00:00:01,12h\nhello,02:00:00:00:00:02,\n").must(201);
    assert_eq!(added, json!({ "added": 2, "ids": ["j1", "j2"] }));
    csv("image,mac\nhello,nonsense\n").refused(422, "rows-refused");
    // Rows are named by their line in the file, whatever is wrong with them.
    let rows = |answer: Got| {
        assert_eq!((answer.status, answer.code()), (422, "rows-refused"));
        let errors = answer.body["errors"].as_array().unwrap().iter();
        errors.map(|row| row["row"].as_u64().unwrap()).collect::<Vec<u64>>()
    };
    let twice =
        csv("image,mac\n\nhello,02:00:00:00:00:03\nhello,02:00:00:00:00:03\nhello,02:00:00:00:00:03\n");
    assert_eq!(rows(twice), [4, 5]);
    assert_eq!(rows(csv("image,mac\n\nhello,02:00:00:00:00:01\nnothere,02:00:00:00:00:04\n")), [3, 4]);
    let lines = json!({ "jobs": [hello(1), hello(2)], "lines": [7, 9] });
    assert_eq!(rows(lab.local("POST", "/v1/jobs/bulk", lines)), [7, 9]);
    lab.local("POST", "/v1/jobs/bulk", json!({ "jobs": [hello(5)], "lines": [7, 9] }))
        .refused(400, "not-jobs");
    for body in [json!({}), json!({ "jobs": [] }), json!({ "jobs": 3 }), json!([])] {
        lab.local("POST", "/v1/jobs/bulk", body).refused(400, "not-jobs");
    }
    let many: Vec<Value> = (0..10_001).map(hello).collect();
    lab.local("POST", "/v1/jobs/bulk", json!({ "jobs": many })).refused(400, "not-jobs");
    lab.local("POST", "/v1/jobs/bulk", json!({ "jobs": [{ "action": "dance" }] }))
        .refused(422, "rows-refused");
}

#[test]
fn an_order_that_replaces_names_what_it_cancelled_and_nonsense_names_its_key() {
    let lab = Lab::start();
    let with = |more: Value| {
        let mut order = hello(1);
        order.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        lab.local("POST", "/v1/jobs", order)
    };
    with(json!({})).must(201);
    with(json!({ "queue": true })).must(201);
    let replacing = with(json!({ "replace": true })).must(201);
    assert_eq!(replacing["replaced"], json!(["j1", "j2"]), "{replacing}");
    for (more, key) in [
        (json!({ "expires": "0s" }), "expires: "),
        (json!({ "window": 0 }), "window: "),
        (json!({ "selector": { "serial": " " } }), "serial: "),
        (json!({ "selector": { "rule": { "group": "x".repeat(129) } } }), "group: "),
    ] {
        let refused = with(more);
        assert_eq!((refused.status, refused.code()), (400, "not-a-job"));
        assert!(refused.body["detail"].as_str().unwrap().starts_with(key), "{}", refused.body);
    }
    let rule = json!({ "selector": { "rule": { "arch": [7, 9, 7] } } });
    assert_eq!(with(rule).must(201)["selector"]["rule"]["arch"], json!([7, 9]));
}

#[test]
fn a_repeated_order_is_carried_out_once() {
    let lab = Lab::start();
    let order = |key: &str, n: u32| {
        lab.local_with("POST", "/v1/jobs", &[("Idempotency-Key", key)], hello(n).to_string())
    };
    let first = order("a", 1);
    let again = order("a", 1);
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(first.body, again.body);
    assert_eq!((again.header("idempotency-replayed"), again.header("etag")), ("true", "\"1\""));
    assert_eq!(again.header("location"), "/v1/jobs/j1");
    order("a", 2).refused(422, "key-reused");
    order("", 2).refused(400, "not-a-key");
    order("b", 1).refused(409, "machine-has-job");
    // Another caller's key is another key.
    let token = lab.token(Role::Operate, "other");
    let headers = [("Idempotency-Key", "a"), ("Authorization", &format!("Bearer {token}"))];
    lab.ask(remote(), "POST", "/v1/jobs", &headers, hello(2).to_string()).must(201);
    assert_eq!(lab.local("GET", "/v1/jobs", Value::Null).must(200)["jobs"].as_array().unwrap().len(), 2);
    lab.local_with("POST", "/v1/tokens", &[("Idempotency-Key", "t")], "{}".into())
        .refused(400, "no-key-here");
}

#[test]
fn machines_are_registered_named_let_in_merged_and_split() {
    let lab = Lab::start();
    let spec =
        |n: u32| json!({ "idents": [{ "mac": mac(n) }], "name": format!("bench-{n}"), "groups": ["lab"] });
    let first = lab.local("POST", "/v1/machines", spec(1));
    assert_eq!((first.header("location"), first.header("etag").is_empty()), ("/v1/machines/m1", false));
    let first = first.must(201);
    assert_eq!((first["id"].as_str(), first["state"].as_str()), (Some("m1"), Some("known")));
    let second = lab.local("POST", "/v1/machines", spec(2)).must(201)["id"].as_str().unwrap().to_owned();
    assert_eq!(lab.local("GET", "/v1/machines/02-00-00-00-00-02", Value::Null).must(200)["id"], second);
    assert_eq!(lab.local("POST", "/v1/machines/m1/reject", Value::Null).must(200)["state"], "rejected");
    assert_eq!(lab.local("POST", "/v1/machines/m1/approve", Value::Null).must(200)["state"], "approved");
    assert_eq!(lab.local("GET", "/v1/machines/bench-2", Value::Null).must(200)["id"], second);
    lab.local("PATCH", "/v1/machines/m1", json!({ "name": "bench-2" })).refused(409, "name-taken");
    lab.local("PATCH", "/v1/machines/m1", json!({ "name": "bench-1" })).must(200);
    let listed = |query: &str| {
        lab.local("GET", &format!("/v1/machines?{query}"), Value::Null).must(200)["machines"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!((listed("group=lab"), listed("state=approved"), listed("group=x")), (2, 1, 0));
    assert_eq!((listed("limit=1"), listed("after=m1")), (1, 1));
    let named = lab.local("PATCH", "/v1/machines/m1", json!({ "name": "", "groups": [] })).must(200);
    assert_eq!(named["name"], Value::Null);
    let stale = lab.local_with("PATCH", "/v1/machines/m1", &[("If-Match", "\"1\"")], "{}".into());
    stale.refused(412, "changed-meanwhile");
    for (body, code) in [
        (json!({ "name": "x".repeat(200) }), "not-a-name"),
        (json!({ "groups": [""] }), "not-a-group"),
        (json!({ "nick": "x" }), "not-a-machine"),
    ] {
        lab.local("PATCH", "/v1/machines/m1", body).refused(400, code);
    }
    let merged =
        lab.local("POST", "/v1/machines/m1/merge", json!({ "other": mac(2), "why": "two cards" })).must(200);
    assert_eq!(merged["parts"].as_array().unwrap().len(), 2);
    let split = lab.local("POST", "/v1/machines/m1/split", json!({ "part": second })).must(200);
    assert_eq!(split["id"], second);
    assert_eq!(lab.local("DELETE", "/v1/machines/m1", Value::Null).status, 204);
    lab.local("GET", "/v1/machines/m1", Value::Null).refused(404, "machine-not-found");
}

#[test]
fn changes_are_in_the_audit_log_with_who_made_them_and_its_chain_is_whole() {
    let lab = Lab::start();
    let token = lab.token(Role::Operate, "ci");
    lab.with_token(&token, "POST", "/v1/jobs", hello(1)).must(201);
    lab.local("DELETE", "/v1/jobs/j1", Value::Null).must(200);
    let log = lab.local("GET", "/v1/audit?subject=j1", Value::Null).must(200);
    let entries = log["entries"].as_array().unwrap();
    let said: Vec<(&str, bool)> = entries
        .iter()
        .map(|entry| {
            (
                entry["body"]["what"].as_str().unwrap(),
                entry["body"]["by"].as_str().unwrap().contains("token ci"),
            )
        })
        .collect();
    assert_eq!(said, [("job-cancelled", false), ("job-added", true)]);
    assert_eq!(
        (&entries[0]["body"]["before"]["stage"], &entries[0]["body"]["after"]["stage"]),
        (&json!("armed"), &json!("cancelled"))
    );
    assert!(entries[0]["body"]["by"].as_str().unwrap().starts_with("uid 0"), "{log}");
    let check = lab.local("GET", "/v1/audit/verify", Value::Null).must(200);
    assert_eq!((&check["whole"], &check["entries"]), (&json!(true), &json!(3)));
    let page = lab.local("GET", "/v1/audit?limit=1", Value::Null).must(200);
    assert_eq!(page["next"], 3);
    assert_eq!(lab.local("GET", "/v1/audit?limit=1&before=1", Value::Null).must(200)["next"], Value::Null);
    assert_eq!(lab.local("GET", &format!("/v1/audit?before={}", u64::MAX), Value::Null).status, 200);
}

#[test]
fn a_backup_is_whole_one_at_a_time_and_leaves_nothing_but_its_entry() {
    let lab = Lab::start();
    lab.local("POST", "/v1/jobs", hello(1)).must(201);
    let operate = lab.token(Role::Operate, "ci");
    lab.with_token(&operate, "GET", "/v1/backup", Value::Null).refused(403, "role-too-low");
    // What a kill left is in nobody's way.
    std::fs::write(lab.dir.join(".copy-for-backup"), "half").unwrap();
    let first = lab.send(root(), "GET", "/v1/backup", &[], String::new());
    assert_eq!(first.status(), 200);
    let header = |name: &str| first.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "application/vnd.sqlite3");
    assert!(header("content-disposition").starts_with("attachment; filename=\"bootstorm-1"));
    let len: usize = header("content-length").parse().unwrap();
    assert!(!lab.dir.join(".copy-for-backup").exists(), "its file has no name any more");
    lab.local("GET", "/v1/backup", Value::Null).refused(409, "backup-under-way");
    let body = lab.runtime.block_on(to_bytes(first.into_body(), usize::MAX)).unwrap();
    assert_eq!(body.len(), len);
    let copy = lab.dir.join("copy");
    std::fs::write(&copy, &body).unwrap();
    let mut copy = MemoryStore::open(&copy).unwrap();
    assert_eq!(copy.list(Kind::Job).unwrap().1.len(), 1);
    // One that is given up makes room too.
    drop(lab.send(root(), "GET", "/v1/backup", &[], String::new()));
    lab.runtime.block_on(tokio::task::yield_now());
    assert_eq!(lab.send(root(), "GET", "/v1/backup", &[], String::new()).status(), 200);
    let audit = lab.local("GET", "/v1/audit", Value::Null).must(200).to_string();
    assert_eq!(audit.matches("store-backed-up").count(), 3, "{audit}");
}

#[test]
fn tokens_are_shown_once_work_by_role_and_are_revoked() {
    let lab = Lab::start();
    let made = lab.local("POST", "/v1/tokens", json!({ "name": "ci", "role": "operate", "expires": "90d" }));
    assert_eq!(made.header("cache-control"), "no-store");
    let made = made.must(201);
    let text = made["token"].as_str().unwrap();
    assert_eq!(text.len(), "bst-".len() + 8 + 1 + 64);
    lab.with_token(text, "POST", "/v1/jobs", hello(1)).must(201);
    lab.with_token(text, "GET", "/v1/tokens", Value::Null).refused(403, "role-too-low");
    let list = lab.local("GET", "/v1/tokens", Value::Null).must(200);
    assert_eq!(list["tokens"][0]["name"], "ci");
    assert!(list["tokens"][0]["last_used"].is_u64());
    assert!(!list.to_string().contains(&text[13..]) && !list.to_string().contains("hash"), "{list}");
    lab.local("DELETE", &format!("/v1/tokens/{}", made["id"].as_str().unwrap()), Value::Null).must(200);
    lab.with_token(text, "GET", "/v1/jobs", Value::Null).refused(401, "token-unknown");
    for (body, code) in [
        (json!({ "name": "", "role": "read" }), "not-a-name"),
        (json!({ "name": "x\u{1b}", "role": "read" }), "not-a-name"),
        (json!({ "name": "x", "role": "root" }), "not-a-token"),
        (json!({ "name": "x", "role": "read", "expires": "soon" }), "not-a-time"),
        (json!({ "name": "x", "role": "read", "expires": "0s" }), "not-a-time"),
    ] {
        lab.local("POST", "/v1/tokens", body).refused(400, code);
    }
}

#[test]
fn every_operation_enforces_the_role_its_document_names() {
    let lab = Lab::start();
    let tokens = [Role::Read, Role::Operate, Role::Admin].map(|role| (role, lab.token(role, role.word())));
    let mut seen = 0;
    for (method, path, needed) in operations() {
        let bare = lab.send(remote(), &method, &path, &[], String::new()).status();
        let Some(needed) = needed else {
            assert_eq!(bare, StatusCode::OK, "{method} {path}");
            continue;
        };
        seen += 1;
        assert_eq!(bare, StatusCode::UNAUTHORIZED, "{method} {path}");
        for (role, token) in &tokens {
            let headers = [("Authorization", format!("Bearer {token}"))];
            let headers = [(headers[0].0, headers[0].1.as_str())];
            let status = lab.send(remote(), &method, &path, &headers, String::new()).status();
            assert_eq!(
                status == StatusCode::FORBIDDEN,
                *role < needed,
                "{method} {path} as {role}: {status}"
            );
            assert!(!status.is_server_error(), "{method} {path} as {role}: {status}");
        }
    }
    assert!(seen > 25, "{seen}");
}

#[test]
fn bad_tokens_are_slowed_down_and_good_ones_are_not() {
    let lab = Lab::start();
    let good = lab.token(Role::Read, "good");
    let mut statuses = Vec::new();
    for _ in 0..30 {
        let got = lab.with_token("bst-00000000-00", "GET", "/v1/jobs", Value::Null);
        assert_eq!(got.header("www-authenticate").is_empty(), got.status != 401);
        assert_eq!(got.header("retry-after").is_empty(), got.status != 429);
        statuses.push(got.status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 20);
    assert_eq!(statuses[29], 429);
    lab.with_token(&good, "GET", "/v1/jobs", Value::Null).must(200);
    lab.ask(remote(), "GET", "/v1/jobs", &[("Authorization", "Basic eDp5")], String::new())
        .refused(401, "token-needed");
}

#[test]
fn strangers_on_the_socket_and_pages_with_names_of_their_own_are_refused() {
    let lab = Lab::start();
    let stranger = Origin::Local { who: "uid 60001".into(), admitted: false };
    lab.ask(stranger.clone(), "GET", "/v1/jobs", &[], String::new()).refused(403, "not-your-socket");
    lab.ask(stranger, "GET", "/metrics", &[], String::new()).refused(403, "not-your-socket");
    let token = format!("Bearer {}", lab.token(Role::Admin, "a"));
    let headers = [("Host", "evil.example:8081"), ("Authorization", token.as_str())];
    lab.ask(remote(), "GET", "/v1/jobs", &headers, String::new()).refused(421, "wrong-host");
    lab.ask(remote(), "GET", "/metrics", &headers[..1], String::new()).refused(421, "wrong-host");
}

#[test]
fn a_script_is_rendered_with_its_reasons_and_changes_nothing() {
    let lab = Lab::start();
    lab.local("POST", "/v1/jobs", hello(1)).must(201);
    let before = lab.local("GET", "/v1/jobs", Value::Null).must(200);
    let answer = lab.local("POST", "/v1/script/render", json!({ "mac": mac(1) })).must(200);
    let script = answer["script"].as_str().unwrap();
    assert!(script.starts_with("#!ipxe") && script.contains("/images/hello/boot.ipxe"), "{script}");
    assert!(script.contains("\n# rendered to be read: the tokens in its URLs open nothing\n"), "{script}");
    let token = script.split_once("/s/").and_then(|(_, rest)| rest.split('/').next()).unwrap();
    assert_eq!(lab.state.keeper.key().verify(token, 86_400), None, "over since the second day of 1970");
    assert_eq!(lab.state.keeper.key().verify(token, 0).unwrap().boot, BootId::SHOWN);
    assert_eq!(lab.local("GET", "/v1/jobs", Value::Null).must(200), before);
}

#[test]
fn versions_of_images_are_listed_gone_back_to_and_removed_and_the_audit_log_has_it() {
    use crate::files::intake::{Wish, add};
    use crate::files::versions::Versions;

    let lab = Lab::start();
    let versions = Versions::open(&lab.dir.join("images")).unwrap();
    let take = |text: &str| {
        let source = lab.dir.join("boot.ipxe");
        std::fs::write(&source, text).unwrap();
        let wish = Wish { name: "hello".into(), sources: vec![source], keep: 5, ..Wish::default() };
        add(&versions, &wish, &mut |_| ()).unwrap().version
    };
    assert_eq!((take("#!ipxe\necho two\n"), take("#!ipxe\necho three\n")), (2, 3));
    let told = json!({ "what": "image-added", "about": { "version": 3 } });
    assert_eq!(lab.local("POST", "/v1/images/hello/announce", told).must(200)["images"], 3);
    let shown = lab.local("GET", "/v1/images/hello", Value::Null).must(200);
    assert_eq!((&shown["version"], &shown["versions_kept"]), (&json!(3), &json!([2, 1])));
    let list = lab.local("GET", "/v1/images/hello/versions", Value::Null).must(200);
    assert_eq!(list["versions"][0]["current"], true);
    let back = lab.local("POST", "/v1/images/hello/rollback", Value::Null).must(200);
    assert_eq!((&back["version"], &back["before"]), (&json!(2), &json!(3)));
    lab.local("POST", "/v1/images/hello/rollback", json!({ "version": 9 })).refused(404, "unknown-version");
    lab.local("POST", "/v1/images/none/rollback", Value::Null).refused(404, "unknown-image");
    for name in ["..%2Fimages", "..", "%2Fetc", ".versions", "..%5Cx"] {
        let gone = lab.local("DELETE", &format!("/v1/images/{name}?force=true"), Value::Null);
        assert!((400..500).contains(&gone.status), "{name}: {}", gone.body);
    }
    lab.local("POST", "/v1/images/hello/announce", json!({ "what": "job-added" }))
        .refused(400, "not-an-announcement");
    lab.local("DELETE", "/v1/images/hello?version=2", Value::Null).refused(409, "version-in-use");
    lab.local("DELETE", "/v1/images/hello?version=1", Value::Null).must(204);
    // A live job needs it, now or later.
    lab.local("POST", "/v1/jobs", hello(1)).must(201);
    lab.local("DELETE", "/v1/images/hello", Value::Null).refused(409, "image-in-use");
    lab.local("DELETE", "/v1/images/hello?force=true", Value::Null).must(204);
    lab.local("GET", "/v1/images/hello", Value::Null).refused(404, "unknown-image");
    lab.local("POST", "/v1/images/wipe/verify", Value::Null).must(202);
    let audit = || lab.local("GET", "/v1/audit?limit=50", Value::Null).must(200).to_string();
    let start = std::time::Instant::now();
    while !audit().contains("image-verified") {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", audit());
        std::thread::sleep(Duration::from_millis(10));
    }
    let said = audit();
    for what in ["image-added", "image-rolled-back", "image-version-removed", "image-removed", "uid 0 (root)"]
    {
        assert!(said.contains(what), "{what} is not in {said}");
    }
    let verified = lab.local("GET", "/v1/images/wipe/versions", Value::Null).must(200);
    assert!(verified["versions"][0]["verified_unix"].is_u64(), "{verified}");
}

#[test]
fn a_change_that_is_made_is_no_error_although_the_audit_log_has_no_room() {
    use crate::files::intake::{Wish, add};
    use crate::files::versions::Versions;

    let store = SharedStore::new(MemoryStore::new());
    let lab = Lab::with_store(Box::new(store.clone()));
    let versions = Versions::open(&lab.dir.join("images")).unwrap();
    for text in ["#!ipxe\necho two\n", "#!ipxe\necho three\n"] {
        let source = lab.dir.join("boot.ipxe");
        std::fs::write(&source, text).unwrap();
        let wish = Wish { name: "hello".into(), sources: vec![source], keep: 5, ..Wish::default() };
        add(&versions, &wish, &mut |_| ()).unwrap();
    }
    store.inner().fill_up(true);
    let document = routes::document();
    let warned = |method: &str, path: &str, shape: &str| {
        let body = lab.local(method, path, Value::Null).must(200);
        let schema = &document["components"]["schemas"][shape];
        fits(&body, schema, &document).unwrap_or_else(|why| panic!("{path}: {why}"));
        let text = body["warnings"][0].as_str().unwrap_or_default().to_owned();
        assert!(text.starts_with("this is not in the audit log: "), "{body}");
        assert!(!text.contains("nothing was changed"), "{body}");
        body
    };
    let back = warned("POST", "/v1/images/hello/rollback", "RolledBack");
    assert_eq!((&back["version"], &back["before"]), (&json!(2), &json!(3)));
    warned("DELETE", "/v1/images/hello?version=1", "Warned");
    warned("DELETE", "/v1/images/hello", "Warned");
    lab.local("GET", "/v1/images/hello", Value::Null).refused(404, "unknown-image");
    // What is stored first is refused whole.
    lab.local("POST", "/v1/jobs", hello(1)).refused(422, "unknown-image");
    let wipe = json!({ "action": "local", "selector": { "mac": mac(1) } });
    lab.local("POST", "/v1/jobs", wipe).refused(503, "store-unavailable");
    // The lab's reload is one whose entry found no room.
    let reloaded = lab.local("POST", "/v1/config/reload", Value::Null).must(200);
    let schema = &document["components"]["schemas"]["Reloaded"];
    fits(&reloaded, schema, &document).unwrap();
    assert!(reloaded["warnings"][0].as_str().unwrap().contains("not in the audit log"), "{reloaded}");
}

#[test]
fn images_boots_health_and_metrics_answer() {
    let lab = Lab::start();
    let images = lab.local("GET", "/v1/images", Value::Null).must(200);
    assert_eq!(images["images"].as_array().unwrap().len(), 3);
    assert_eq!(lab.local("GET", "/v1/images/wipe", Value::Null).must(200)["destructive"], true);
    assert_eq!(lab.local("POST", "/v1/images/rescan", Value::Null).must(200)["images"], 3);
    assert_eq!(
        lab.local("GET", "/v1/boots", Value::Null).must(200),
        json!({ "boots": [], "text": [], "verdicts": [] })
    );
    assert_eq!(lab.local("GET", "/healthz", Value::Null).must(200), "ok\n");
    assert_eq!(lab.local("GET", "/readyz", Value::Null).must(200), "ready\n");
    lab.faulty.store(true, Ordering::Relaxed);
    let not_ready = lab.local("GET", "/readyz", Value::Null);
    assert!(not_ready.body["detail"].as_str().unwrap().contains("cores ended"), "{}", not_ready.body);
    not_ready.refused(503, "not-ready");
    lab.ask(remote(), "GET", "/v1/jobs", &[], String::new()).refused(401, "token-needed");
    let metrics = lab.local("GET", "/metrics", Value::Null).must(200);
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.starts_with("bootstorm_x 1\n"), "{metrics}");
    assert!(metrics.contains("bootstorm_admin_refused_total{reason=\"no-token\"} 1\n"), "{metrics}");
}

/// Reads frames of a stream until so many events, as (name, id, data).
fn frames(lab: &Lab, body: Body, count: usize) -> Vec<(String, String, Value)> {
    let mut body = body;
    let mut text = String::new();
    let mut seen = Vec::new();
    lab.runtime.block_on(async {
        while seen.len() < count {
            let frame =
                tokio::time::timeout(Duration::from_secs(20), body.frame()).await.expect("a frame in time");
            let Some(frame) = frame else { break };
            text.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
            while let Some(end) = text.find("\n\n") {
                let event: String = text.drain(..end + 2).collect();
                let field = |name: &str| {
                    let line = event.lines().find(|line| line.starts_with(name)).unwrap_or_default();
                    line[line.find(": ").map_or(0, |at| at + 2)..].to_owned()
                };
                if !event.starts_with(':') {
                    seen.push((field("event"), field("id"), serde_json::from_str(&field("data")).unwrap()));
                }
            }
        }
    });
    seen
}

#[test]
fn events_are_streamed_and_a_broken_stream_resumes_where_it_was() {
    let lab = Lab::start();
    lab.say(3);
    assert_eq!(lab.local("GET", "/v1/events?limit=2", Value::Null).must(200)["next"], 2);
    let open = |path: &str, headers: &[(&str, &str)]| {
        lab.send(root(), "GET", path, headers, String::new()).into_body()
    };
    let ids = |seen: &[(String, String, Value)]| seen.iter().map(|(_, id, _)| id.clone()).collect::<Vec<_>>();
    let all = frames(&lab, open("/v1/events/stream?after=0", &[]), 3);
    assert_eq!(ids(&all), ["1", "2", "3"]);
    assert_eq!(all[1].2["body"]["n"], 1);
    let resumed = frames(&lab, open("/v1/events/stream", &[("Last-Event-ID", "2")]), 1);
    assert_eq!(ids(&resumed), ["3"]);
    // Without a place in the log it begins with what happens from now on, which here is after the next line.
    let live = open("/v1/events/stream", &[]);
    lab.say(1000);
    let live = frames(&lab, live, 1000);
    assert_eq!((ids(&live)[0].as_str(), ids(&live)[999].as_str()), ("4", "1003"), "in order, none left out");
    lab.local_with("GET", "/v1/events/stream", &[("Last-Event-ID", "x")], String::new())
        .refused(400, "not-an-event-id");
}

#[test]
fn who_was_away_for_too_long_is_told_what_was_skipped() {
    let lab = Lab::start();
    lab.say(1000);
    lab.state.keeper.look_and_wait(|_, store| store.trim(0, 300, 10).unwrap()).unwrap();
    let body = lab.send(root(), "GET", "/v1/events/stream?after=10", &[], String::new());
    let seen = frames(&lab, body.into_body(), 301);
    assert_eq!((seen[0].0.as_str(), &seen[0].2), ("gap", &json!({ "skipped": 690 })));
    assert_eq!((seen[1].1.as_str(), seen[300].1.as_str()), ("701", "1000"));
}

#[test]
fn a_stream_ends_with_its_token_and_streams_are_bounded() {
    let lab = Lab::start();
    let text = lab.token(Role::Read, "watcher");
    let open = || {
        let header = format!("Bearer {text}");
        lab.send(remote(), "GET", "/v1/events/stream?after=0", &[("Authorization", &header)], String::new())
    };
    let streams: Vec<_> = (0..routes::events::STREAMS_MAX).map(|_| open()).collect();
    assert!(streams.iter().all(|stream| stream.status() == 200));
    assert_eq!(open().status(), 503);
    drop(streams);
    let stream = open();
    assert_eq!(stream.status(), 200);
    lab.local("DELETE", &format!("/v1/tokens/{}", &text[4..12]), Value::Null).must(200);
    assert!(frames(&lab, stream.into_body(), 1).is_empty(), "the stream has ended");
}

/// Whether a value is what a schema says; what is wrong otherwise. Knows what the document uses.
fn fits(value: &Value, schema: &Value, document: &Value) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let target = document.pointer(&name[1..]).ok_or_else(|| format!("{name} is not there"))?;
        return fits(value, target, document);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let fitting = choices.iter().filter(|choice| fits(value, choice, document).is_ok()).count();
        return if fitting == 1 {
            Ok(())
        } else {
            Err(format!("{value} fits {fitting} of the choices {schema}"))
        };
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        return Err(format!("{value} is none of {words:?}"));
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(some) => some.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if !types.contains(&found) {
        return Err(format!("{value} is {found}, not {types:?}"));
    }
    for item in value.as_array().into_iter().flatten() {
        fits(item, &schema["items"], document)?;
    }
    if let Some(object) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(name) {
                return Err(format!("{name} is missing"));
            }
        }
        for (name, value) in object {
            match schema["properties"].get(name) {
                Some(schema) => fits(value, schema, document).map_err(|why| format!("{name}: {why}"))?,
                None if schema["additionalProperties"] == json!(false) => {
                    return Err(format!("{name} is not known"));
                }
                None => {}
            }
        }
    }
    Ok(())
}

#[test]
fn answers_are_what_the_document_says() {
    let lab = Lab::start();
    let document = routes::document();
    let rule = json!({ "rule": { "subnet": "10.77.0.0/24", "arch": [7], "group": "lab" } });
    let orders = [
        ("POST", "/v1/jobs", hello(1)),
        ("POST", "/v1/jobs", json!({ "action": "wait", "selector": "any", "always": true, "expires": "1h" })),
        ("POST", "/v1/jobs", json!({ "action": { "image": "hello" }, "selector": rule, "window": "10m" })),
        (
            "POST",
            "/v1/machines",
            json!({ "idents": [{ "mac": mac(1) }, { "serial": "A1" }], "groups": ["lab"] }),
        ),
        ("POST", "/v1/machines", json!({ "idents": [{ "mac": mac(2) }], "name": "x" })),
        ("POST", "/v1/machines/m1/merge", json!({ "other": mac(2) })),
        ("PATCH", "/v1/machines/m1", json!({ "state": "approved" })),
        ("POST", "/v1/tokens", json!({ "name": "x", "role": "read" })),
        ("POST", "/v1/jobs/bulk", json!({ "jobs": [hello(9)] })),
        ("POST", "/v1/jobs/bulk", json!({ "jobs": [hello(9)] })),
        ("POST", "/v1/script/render", json!({ "mac": mac(1), "platform": "efi", "arch": 7 })),
        ("POST", "/v1/images/rescan", Value::Null),
        ("GET", "/v1/images/wipe/versions", Value::Null),
        ("POST", "/v1/images/wipe/announce", json!({ "what": "image-added", "about": { "version": 1 } })),
        ("POST", "/v1/images/wipe/rollback", json!({ "version": 7 })),
        ("POST", "/v1/images/wipe/verify", json!({ "all": true })),
        ("GET", "/v1/jobs", Value::Null),
        ("GET", "/v1/jobs/j1", Value::Null),
        ("GET", "/v1/jobs/j1/claims", Value::Null),
        ("GET", "/v1/machines", Value::Null),
        ("GET", "/v1/machines/m1", Value::Null),
        ("GET", "/v1/images", Value::Null),
        ("GET", "/v1/images/wipe", Value::Null),
        ("GET", "/v1/boots", Value::Null),
        ("GET", "/v1/explain?machine=j1&last=3", Value::Null),
        ("GET", "/v1/alarms", Value::Null),
        ("GET", "/v1/events", Value::Null),
        ("GET", "/v1/audit", Value::Null),
        ("GET", "/v1/audit/verify", Value::Null),
        ("GET", "/v1/tokens", Value::Null),
        ("GET", "/v1/openapi.json", Value::Null),
        ("GET", "/v1/jobs/j99", Value::Null),
        ("DELETE", "/v1/jobs/j1", Value::Null),
    ];
    for (method, path, body) in orders {
        let pattern = path
            .replace("/jobs/j1", "/jobs/{id}")
            .replace("/jobs/{id}9", "/jobs/{id}")
            .replace("/jobs/j99", "/jobs/{id}")
            .replace("/machines/m1", "/machines/{id}")
            .replace("/images/wipe", "/images/{name}");
        let pattern = pattern.split('?').next().unwrap_or_default();
        let operation = &document["paths"][pattern][method.to_lowercase()];
        assert!(operation.is_object(), "{method} {pattern} is not documented");
        if let Some(schema) = operation.pointer("/requestBody/content/application~1json/schema") {
            fits(&body, schema, &document).unwrap_or_else(|why| panic!("{method} {path} asks {body}: {why}"));
        }
        let got = lab.local(method, path, body);
        let status = got.status.to_string();
        let responses = &operation["responses"];
        let schema = match responses.get(&status) {
            Some(response) => response.pointer("/content/application~1json/schema"),
            None => responses["default"].pointer("/content/application~1problem+json/schema"),
        };
        let schema = schema.unwrap_or_else(|| panic!("{method} {path}: {status} has no schema"));
        fits(&got.body, schema, &document)
            .unwrap_or_else(|why| panic!("{method} {path} {status}: {why}\n{}", got.body));
    }
}

#[test]
fn every_shape_the_document_refers_to_is_there_and_every_shape_is_used() {
    let document = routes::document();
    let text = document.to_string();
    let mut used: Vec<&str> =
        text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    used.sort_unstable();
    used.dedup();
    let there: Vec<&str> =
        document["components"]["schemas"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(used, there);
    let operations =
        document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
    let mut ids: Vec<&str> = operations.map(|operation| operation["operationId"].as_str().unwrap()).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "{ids:?}");
    assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{}", document["openapi"]);
}

/// Listeners of a lab.
fn listen(lab: &Lab) -> Control {
    Control::start(Arc::clone(&lab.state), &lab.dir.join("admin.sock"), Some("127.0.0.1:0".parse().unwrap()))
        .unwrap()
}

#[test]
fn tcp_answers_health_by_address_only_and_the_rest_by_token_only() {
    use std::io::{Read, Write};
    let lab = Lab::start();
    let control = listen(&lab);
    let addr = control.tcp.unwrap();
    let ask = |path: &str, host: &str| {
        let mut stream = std::net::TcpStream::connect(addr).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("/healthz", "127.0.0.1:8081").starts_with("HTTP/1.1 200"));
    assert!(ask("/metrics", "localhost").contains("bootstorm_x 1"));
    assert!(ask("/metrics", "evil.example").starts_with("HTTP/1.1 421"));
    assert!(ask("/v1/jobs", "127.0.0.1").starts_with("HTTP/1.1 401"));
    let token = Client::new(lab.dir.join("admin.sock"))
        .post("/v1/tokens", &json!({ "name": "far", "role": "operate" }))
        .unwrap();
    let url: super::client::ServerUrl = format!("http://{addr}").parse().unwrap();
    let far = Client::remote(url.clone(), token["token"].as_str().map(str::to_owned));
    assert_eq!(far.post("/v1/jobs", &hello(1)).unwrap()["id"], "j1");
    assert!(far.get("/v1/tokens").unwrap_err().is_permission());
    assert!(Client::remote(url, None).get("/v1/jobs").unwrap_err().is_permission());
}

#[test]
fn connections_that_say_nothing_shut_nobody_out() {
    use std::io::{Read, Write};
    let lab = Lab::start();
    let bearer = format!("Authorization: Bearer {}\r\n", lab.token(Role::Read, "reader"));
    let control = listen(&lab);
    let connect = || std::net::TcpStream::connect(control.tcp.unwrap()).unwrap();
    let ask = |stream: &mut std::net::TcpStream, more: &str| {
        write!(stream, "GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\n{more}\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    let mut known = connect();
    assert_eq!(ask(&mut known, &bearer), "200");
    let mut silent: Vec<_> = (0..300).map(|_| connect()).collect();
    assert_eq!(ask(&mut connect(), ""), "401", "there is room for one more");
    let mut byte = [0];
    assert_eq!(silent[0].read(&mut byte).unwrap(), 0, "the oldest has made room");
    let last = silent.last_mut().unwrap();
    last.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    last.read(&mut byte).expect_err("the newest is still there");
    let mut rest = [0; 4096];
    known.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while known.read(&mut rest).is_ok_and(|len| len > 0) {}
    known.set_read_timeout(None).unwrap();
    assert_eq!(ask(&mut known, &bearer), "200", "who has shown a token is left alone");
}

#[test]
fn a_live_socket_is_not_taken_over_and_a_dead_one_is() {
    let lab = Lab::start();
    let control = listen(&lab);
    let socket = lab.dir.join("admin.sock");
    let second = Control::start(Arc::clone(&lab.state), &socket, None);
    assert!(matches!(second, Err(ControlError::InUse(_))));
    drop(control);
    assert!(!socket.exists(), "a server that stops takes its socket along");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let _control = Control::start(Arc::clone(&lab.state), &socket, None).unwrap();
    assert!(Client::new(socket).get("/v1/jobs").is_ok());
}

#[test]
fn a_server_that_stops_does_not_wait_for_an_image_that_is_being_read() {
    let lab = Lab::start();
    // Longer than anybody waits, and no byte on the disk.
    let file = std::fs::File::create(lab.dir.join("images/wipe/large.bin")).unwrap();
    file.set_len(64 << 30).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3_600)).unwrap();
    // Whoever has it open for writing is still at it.
    drop(file);
    let control = listen(&lab);
    let client = Client::new(lab.dir.join("admin.sock"));
    client.post("/v1/images/wipe/verify", &json!({})).unwrap();
    let again = client.post("/v1/images/wipe/verify", &json!({})).unwrap_err().to_string();
    assert!(again.contains("another image is being read"), "{again}");
    let start = std::time::Instant::now();
    drop(control);
    assert!(start.elapsed() < STOP_PATIENCE / 2, "{:?}", start.elapsed());
    let audit = lab.local("GET", "/v1/audit", Value::Null).must(200).to_string();
    assert!(audit.contains("image-not-verified") && audit.contains("the server stopped"), "{audit}");
    assert!(!audit.contains("image-verified"), "{audit}");
}

#[test]
fn no_server_is_said_so_with_the_next_step() {
    let error = Client::new("/nonexistent/admin.sock".into()).get("/v1/jobs").unwrap_err();
    assert!(error.to_string().contains("is `bootstorm serve` running"), "{error}");
    let nobody = "http://127.0.0.1:9".parse().unwrap();
    let error = Client::remote(nobody, None).get("/v1/jobs").unwrap_err();
    assert!(
        matches!(error, ClientError::Unreachable { .. }) && error.to_string().contains("[admin] listen"),
        "{error}"
    );
}
