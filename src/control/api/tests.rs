//! The API over a real Unix socket, by the commands' own client.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::control::client::{Client, ClientError};
use crate::control::{Control, ControlError};
use crate::files::library::{Library, Settings};
use crate::history::History;
use crate::jobs::script::{Context, Policy, compose_explained};
use crate::jobs::token::{BootId, TokenKey};
use crate::keeper::{Keeper, Running};
use crate::store::MemoryStore;

struct Lab {
    dir: PathBuf,
    control: Option<Control>,
    state: Arc<State>,
    _keeper: Running,
}

impl Lab {
    fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("bootstorm-api-{}-{number}", std::process::id()));
        std::fs::create_dir_all(dir.join("images/hello")).unwrap();
        std::fs::write(dir.join("images/hello/hello.ipxe"), "#!ipxe\necho hello\n").unwrap();
        std::fs::create_dir_all(dir.join("images/empty")).unwrap();
        std::fs::create_dir_all(dir.join("images/wipe")).unwrap();
        std::fs::write(dir.join("images/wipe/wipe.ipxe"), "#!ipxe\necho bye\n").unwrap();
        std::fs::write(dir.join("images/wipe/image.toml"), "destructive = true\n").unwrap();
        let library = Arc::new(
            Library::open(Settings {
                images_dir: dir.join("images"),
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
        let keeper = Keeper::start(
            Box::new(MemoryStore::new()),
            Box::new(move || images.snapshot()),
            [1; 32],
            Box::new(|_| {}),
        )
        .unwrap();
        let (k, l) = (keeper.keeper().clone(), Arc::clone(&library));
        let state = Arc::new(State {
            keeper: keeper.keeper().clone(),
            library,
            history: Arc::new(History::default()),
            script: Box::new(move |who| {
                let context = Context {
                    base_url: "http://192.0.2.1:4433",
                    boot: BootId(1),
                    key: &TokenKey::new([1; 32]),
                    now_unix: 0,
                    policy: &Policy::default(),
                };
                compose_explained(&k.table().view(), &**l.load(), who, &context)
            }),
            metrics: Box::new(|| "bootstorm_x 1\n".into()),
        });
        let control = Control::start(
            Arc::clone(&state),
            &dir.join("admin.sock"),
            Some("127.0.0.1:0".parse().expect("an address")),
        )
        .unwrap();
        Self { dir, control: Some(control), state, _keeper: keeper }
    }

    fn client(&self) -> Client {
        Client::new(self.dir.join("admin.sock"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.control = None;
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn refused(result: Result<Value, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::Refused { status, code, .. }) => (status, code),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_is_added_listed_shown_and_cancelled() {
    let lab = Lab::start();
    let client = lab.client();
    let spec = json!({ "action": { "image": "hello" }, "selector": { "mac": "52-54-00-00-00-01" } });
    let job = client.post("/v1/jobs", &spec).unwrap();
    assert_eq!(job["stage"], "armed");
    assert_eq!(job["selector"]["mac"], "52:54:00:00:00:01");
    let id = job["id"].as_str().unwrap().to_owned();
    assert_eq!(refused(client.post("/v1/jobs", &spec)), (409, "machine-has-job".into()));
    assert_eq!(client.get("/v1/jobs").unwrap()["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(client.get(&format!("/v1/jobs/{id}")).unwrap()["id"], id);
    assert_eq!(client.delete(&format!("/v1/jobs/{id}")).unwrap()["stage"], "cancelled");
    assert_eq!(refused(client.delete(&format!("/v1/jobs/{id}"))), (409, "job-ended".into()));
}

#[test]
fn what_makes_no_sense_is_refused_with_a_word_and_a_reason() {
    let lab = Lab::start();
    let client = lab.client();
    for (spec, status, code) in [
        (json!({}), 400, "not-a-job"),
        (json!({ "action": "local", "selector": { "mac": "nonsense" } }), 400, "not-a-job"),
        (json!({ "action": "local", "selector": { "mac": "02:00:00:00:00:01" }, "x": 1 }), 400, "not-a-job"),
        (
            json!({ "action": { "image": "nothere" }, "selector": { "mac": "02:00:00:00:00:01" } }),
            422,
            "unknown-image",
        ),
        (
            json!({ "action": { "image": "empty" }, "selector": { "mac": "02:00:00:00:00:01" } }),
            422,
            "image-cannot-boot",
        ),
        (
            json!({ "action": { "image": "wipe" }, "selector": { "mac": "02:00:00:00:00:01" }, "always": true }),
            422,
            "destructive-needs-once",
        ),
    ] {
        assert_eq!(refused(client.post("/v1/jobs", &spec)), (status, code.to_owned()), "{spec}");
    }
    assert_eq!(refused(client.get("/v1/jobs/j99")), (404, "job-not-found".into()));
    assert_eq!(refused(client.get("/v1/jobs/x")), (400, "not-a-job-id".into()));
    assert_eq!(refused(client.get("/v1/nothing")), (404, "no-such-path".into()));
    assert!(jobs(&lab).is_empty());
}

#[test]
fn a_script_is_rendered_with_its_reasons_and_changes_nothing() {
    let lab = Lab::start();
    let client = lab.client();
    let spec = json!({ "action": { "image": "hello" }, "selector": { "mac": "52:54:00:00:00:01" } });
    client.post("/v1/jobs", &spec).unwrap();
    let before = jobs(&lab);
    let answer = client.post("/v1/script/render", &json!({ "mac": "52:54:00:00:00:01" })).unwrap();
    assert!(answer["script"].as_str().unwrap().starts_with("#!ipxe"), "{answer}");
    assert!(answer["script"].as_str().unwrap().contains("/images/hello/hello.ipxe"), "{answer}");
    assert_eq!(jobs(&lab), before);
}

#[test]
fn tcp_answers_health_and_metrics_by_address_only() {
    use std::io::{Read, Write};
    let lab = Lab::start();
    let addr = lab.control.as_ref().unwrap().tcp.unwrap();
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
}

#[test]
fn a_live_socket_is_not_taken_over_and_a_dead_one_is() {
    let mut lab = Lab::start();
    let socket = lab.dir.join("admin.sock");
    let second = Control::start(Arc::clone(&lab.state), &socket, None);
    assert!(matches!(second, Err(ControlError::InUse(_))));
    lab.control = None;
    assert!(!socket.exists(), "a server that stops takes its socket along");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    lab.control = Some(Control::start(Arc::clone(&lab.state), &socket, None).unwrap());
    assert!(lab.client().get("/v1/jobs").is_ok());
}

#[test]
fn no_server_is_said_so_with_the_next_step() {
    let error = Client::new("/nonexistent/admin.sock".into()).get("/v1/jobs").unwrap_err();
    assert!(error.to_string().contains("is `bootstorm serve` running"), "{error}");
}

fn jobs(lab: &Lab) -> Vec<Job> {
    lab.state.keeper.look_and_wait(|book, _| book.jobs().map(|job| Job::clone(job)).collect()).unwrap()
}
