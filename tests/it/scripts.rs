//! Every script this server can give, executed by real iPXE, line by line.
//!
//! The scripts are the snapshots in `tests/snapshots`. One machine runs them all: a driver
//! script chains one after the other, every URL in them points at a web server of the test, and every file is an
//! iPXE script again, so that `boot` has something to execute that comes back. In front of each line stands an
//! `echo` of its number; what iPXE echoes comes over the serial port.
//!
//! What a run must come to is what [`Interpreter`] makes of the same text: the same lines in the same order, the same
//! URLs asked for in the same order, the same end. A line that iPXE rejects ends a script early or sends it
//! elsewhere, or shows a usage message, and each of these fails the test with the script and both traces. Over all
//! the runs of a script every line of it has to have been executed.
//!
//! Scripts with hostile text in one field are executed beside the script with an `x` in its place, and have to do the
//! same: the same commands in the same order, as many downloads, the same end.
//!
//! `LAB_ALL=1` runs all of it, on BIOS and UEFI; without it each shape and each field has one run, on BIOS.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bootstorm::client::script::{End, Fetched, Interpreter, Step};
use labkit::{Answer, Asked, Firmware, Machine, MachineSpec, WebHost};

use crate::server::{BRIDGE, FULL, Net, Site};

/// From power-on to the driver script, and from one script to the next.
const PATIENCE: Duration = Duration::from_secs(150);
const HOST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), 8000);
/// What the snapshots' URLs begin with.
const BASE: &str = "http://10.77.0.1:4433";

/// Runs the scripts one by one. What a script leaves registered is freed in front of the next. It is itself a custom
/// script with a variable, given by the server under test.
const DRIVER: &str = "#!ipxe\necho @<driver of {{job}} for {{mac}}>\n:next\nimgfree ||\n\
    chain --autofree http://10.77.0.1:8000/lab/next && set how ok || set how failed\n\
    isset ${over} && goto over ||\nimgfree ||\n\
    imgfetch --name done http://10.77.0.1:8000/lab/end?${how} || goto over\ngoto next\n\
    :over\nchain --autofree http://10.77.0.1:8000/lab/last ||\n";

/// What iPXE prints about a line it cannot run, blanks and line breaks taken out.
const REJECTED: [&str; 6] = [
    "commandnotfound",
    "Usage:",
    "nrecognisedoption",
    "requiresanargument",
    "nvalidnumber",
    "mbiguousoption",
];

/// How the network answers a script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum World {
    /// Every file is there.
    Whole,
    /// None is.
    Gone,
    /// None is at first: so many requests fail.
    Late(u32),
}

/// One script to be run.
#[derive(Clone, Debug)]
struct Case {
    /// Of the snapshot, and how it was varied.
    name: String,
    snapshot: String,
    /// With its line numbers.
    script: String,
    world: World,
}

/// What a run came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Run {
    /// Line numbers and what was executed, in order.
    trace: Vec<String>,
    /// Paths asked for, in order, decoded; the same one in a row counts once. iPXE of before 2021-11 encodes a query
    /// anew as it likes, and asks several times for a disk that is not there.
    asked: Vec<String>,
    /// `ok` or `failed`.
    end: String,
}

#[derive(Debug, Default)]
struct Lab {
    cases: Vec<Case>,
    runs: Vec<Run>,
    failures: u32,
    begun: usize,
    over: bool,
    last: String,
}

impl Run {
    fn asks(&mut self, target: &str) {
        let target = decoded(target);
        if self.asked.last() != Some(&target) {
            self.asked.push(target);
        }
    }
}

fn decoded(target: &str) -> String {
    let mut out = Vec::new();
    let mut rest = target.as_bytes();
    while let [first, behind @ ..] = rest {
        // iPXE of before 2019-02 and its neighbours extend a byte's sign when they encode it anew: %FFFFFFC3.
        let behind = behind.strip_prefix(b"FFFFFF").filter(|_| *first == b'%').unwrap_or(behind);
        let hex = behind.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => (out.push(byte), rest = &behind[2..]),
            None => (out.push(*first), rest = behind),
        };
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Lab {
    fn answer(&mut self, asked: &Asked) -> Answer {
        match asked.target.split_once('?').map_or(asked.target.as_str(), |(path, _)| path) {
            "/lab/next" => {
                self.failures = 0;
                let Some(case) = self.cases.get(self.begun) else {
                    return Answer::Content(b"#!ipxe\nset over yes\n".to_vec());
                };
                self.begun += 1;
                self.runs.push(Run::default());
                let marked = case.script.replacen('\n', &format!("\necho @<case {}>\n", self.begun - 1), 1);
                Answer::Content(marked.into_bytes())
            }
            "/lab/end" => {
                let how = asked.target.split_once('?').map_or("", |(_, how)| how);
                if let Some(run) = self.runs.last_mut() {
                    run.end = how.to_owned();
                }
                Answer::Content(b"x".to_vec())
            }
            "/lab/last" => {
                self.over = true;
                Answer::Content(self.last.clone().into_bytes())
            }
            _ => {
                let (Some(run), Some(case)) =
                    (self.runs.last_mut(), self.cases.get(self.begun.wrapping_sub(1)))
                else {
                    return Answer::Missing;
                };
                // A disk's pieces are asked for as the firmware likes; that it was asked for is what counts.
                if asked.range.is_none() {
                    run.asks(&asked.target);
                }
                match world_answer(case.world, &mut self.failures, &asked.target) {
                    Some(body) => Answer::Content(body.into_bytes()),
                    None => Answer::Missing,
                }
            }
        }
    }
}

/// Every file there is says that it was executed, and ends well. Four sectors of it make a disk that boots nothing.
fn world_answer(world: World, failures: &mut u32, target: &str) -> Option<String> {
    let fails = match world {
        World::Whole => false,
        World::Gone => true,
        World::Late(times) => *failures < times,
    };
    if fails {
        *failures += 1;
        return None;
    }
    let path = decoded(target.split('?').next().unwrap_or_default());
    let shown: String =
        path.rsplit('/').next().unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).collect();
    let body = format!("#!ipxe\necho @<ran {shown}>\n");
    Some(format!("{body:\n<2048}"))
}

/// The same as a table of settings for the interpreter.
fn settings(spec: &MachineSpec) -> BTreeMap<String, String> {
    let efi = spec.firmware != Firmware::Bios;
    [
        ("net0/mac", spec.mac.as_str()),
        ("netX/mac", spec.mac.as_str()),
        ("ip", "10.77.0.100"),
        ("uuid", spec.uuid.as_str()),
        ("manufacturer", MANUFACTURER),
        ("product", PRODUCT),
        ("serial", SERIAL),
        ("platform", if efi { "efi" } else { "pcbios" }),
        ("buildarch", if efi { "x86_64" } else { "i386" }),
        ("cpuid/longmode", "1"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

/// SMBIOS texts with everything in them that could mean something to a script or a URL.
const MANUFACTURER: &str = "A&B || shell";
const PRODUCT: &str = "${net0/mac} #1?x=/y";
const SERIAL: &str = "S%41 ; exit";

fn predicted(case: &Case, spec: &MachineSpec) -> Run {
    let mut ipxe = Interpreter::new(settings(spec));
    let mut run = Run::default();
    let mut failures = 0;
    let mut step = ipxe.start(&case.script);
    let end = loop {
        step = match step {
            Step::Fetch { url } => {
                let target = url.strip_prefix(&format!("http://{HOST}")).unwrap_or(&url).to_owned();
                let answer = world_answer(case.world, &mut failures, &target);
                run.asks(&target);
                ipxe.fetched(answer.map_or(Fetched::Failed, Fetched::Script))
            }
            Step::Sleep(_) => ipxe.resume(),
            // A disk that boots nothing.
            Step::Done(End::SanBooted(url)) => {
                let target = url.strip_prefix(&format!("http://{HOST}")).unwrap_or(&url).to_owned();
                world_answer(case.world, &mut failures, &target);
                run.asks(&target);
                ipxe.returned(false)
            }
            // There is no disk.
            Step::Done(End::LocalBoot) => ipxe.returned(false),
            Step::Done(end) => break end,
        };
    };
    run.end = match end {
        End::Exited(true) => "ok".into(),
        End::Exited(false) => "failed".into(),
        other => panic!(
            "{}: the script may only end by leaving iPXE, not in {other:?}\n{}",
            case.name, case.script
        ),
    };
    run.trace = markers(&ipxe.screen);
    run
}

/// What stands between `@<` and `>`.
fn markers(text: &str) -> Vec<String> {
    text.split("@<").skip(1).filter_map(|rest| Some(rest.split_once('>')?.0.to_owned())).collect()
}

/// Terminal output as text: control sequences become line breaks.
fn plain(serial: &str) -> String {
    let mut out = String::new();
    let mut chars = serial.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            out.push('\n');
            let mut rest = chars.clone();
            if rest.next() == Some('[') {
                chars = rest;
                chars.by_ref().find(|c| c.is_ascii_alphabetic());
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// The script with the number of each line echoed in front of it, or behind a label.
fn numbered(script: &str) -> String {
    let mut out = String::new();
    for (number, line) in script.lines().enumerate() {
        let marker = if is_executed(line) { format!("echo @<{number}>\n") } else { String::new() };
        let (before, behind) =
            if line.starts_with(':') { ("", marker.as_str()) } else { (marker.as_str(), "") };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{before}{line}");
        out.push_str(behind);
    }
    out
}

fn is_executed(line: &str) -> bool {
    !line.is_empty() && !line.starts_with('#')
}

/// Nobody waits for seconds to pass, and a shell would wait for a person.
fn hastened(script: &str) -> String {
    let mut out = String::new();
    for line in script.lines() {
        let mut words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "sleep" => words[1] = "0",
            "prompt" | "choose" => {
                if let Some(at) = words.iter().position(|word| *word == "--timeout") {
                    words[at + 1] = "200";
                }
            }
            "shell" => words[0] = "echo",
            _ => {}
        }
        let _ = writeln!(out, "{}", words.join(" "));
    }
    out
}

/// As if somebody had pressed the key that a prompt asks for.
fn pressed(script: &str) -> String {
    let mut out = String::new();
    for line in script.lines() {
        match line.find(" && ").or_else(|| line.find(" || ")).filter(|_| line.starts_with("prompt --key")) {
            Some(at) => _ = writeln!(out, "iseq x x{}", &line[at..]),
            None => _ = writeln!(out, "{line}"),
        }
    }
    out
}

/// As if the machine were another than it is.
fn guarded(script: &str, answer: &str) -> String {
    let mut out = String::new();
    for line in script.lines() {
        match line.strip_suffix(" || goto misfit") {
            Some(_) => _ = writeln!(out, "{answer} || goto misfit"),
            None => _ = writeln!(out, "{line}"),
        }
    }
    out
}

/// The snapshots by name, as scripts whose URLs point at the lab.
fn snapshots() -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&folder).expect("there are snapshots") {
        let path = entry.expect("a readable folder").path();
        let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        if !name.starts_with("script_") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a snapshot is text");
        let (_, script) = text.split_once("\n---\n").expect("a snapshot has a head");
        found.insert(name, script.replace(BASE, &format!("http://{HOST}")));
    }
    found
}

fn items(script: &str) -> Vec<String> {
    let mut labels = Vec::new();
    for line in script.lines().filter(|line| line.starts_with("item ") && !line.contains("--gap")) {
        let mut words = line.split(' ').skip(1).peekable();
        if words.next_if_eq(&"--key").is_some() {
            words.next();
        }
        labels.extend(words.next().map(str::to_owned));
    }
    labels
}

/// Every way a script is run: what the network does, which key is pressed, which item is chosen.
fn cases_of(snapshot: &str, script: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |how: String, script: &str, world| {
        let script = numbered(&hastened(script));
        cases.push(Case { name: format!("{snapshot}: {how}"), snapshot: snapshot.to_owned(), script, world });
    };
    add("all is there".into(), script, World::Whole);
    if !everything() {
        return cases;
    }
    let polls = script.contains("|| goto wait\n");
    if script.contains("http://") {
        add("slow".into(), script, World::Late(2));
        if !polls {
            add("nothing is there".into(), script, World::Gone);
        }
    }
    if script.contains("\nprompt --key") {
        add("key pressed".into(), &pressed(script), World::Whole);
    }
    if script.contains(" || goto misfit\n") {
        add("made for this machine".into(), &guarded(script, "iseq x x"), World::Whole);
        add("made for this machine, gone".into(), &guarded(script, "iseq x x"), World::Gone);
        add("made for another machine".into(), &guarded(script, "iseq x y"), World::Whole);
    }
    let default = script.lines().find(|line| line.starts_with("set default "));
    if let Some(default) = default {
        for label in items(script) {
            // Once: a person would not choose the same again for ever. On the same line, so that lines keep their numbers.
            let once = "chosen && set default local || goto local\n";
            let chosen = script.replacen("chosen || goto local\n", once, 1);
            // What is on a group's page is chosen there, and the page before it.
            let first_page = script.split("\n:").nth(1).unwrap_or_default();
            let item = |page: &str| page.contains(&format!(" {label} ")) && page.contains("\nitem ");
            let group = script.split("\n:g").skip(1).find(|page| !item(first_page) && item(page));
            let group = group.and_then(|page| page.lines().next()).map(|number| format!("g{number}"));
            let chosen = match &group {
                Some(_) => chosen.replace("choose --default menu ", &format!("choose --default {label} ")),
                None => chosen,
            };
            let first = group.unwrap_or_else(|| label.clone());
            let chosen = chosen.replacen(default, &format!("set default {first}"), 1);
            add(format!("{label} chosen"), &chosen, World::Whole);
            add(format!("{label} chosen, key pressed"), &pressed(&chosen), World::Whole);
            if label == "i0" {
                add(format!("{label} chosen, key pressed, gone"), &pressed(&chosen), World::Gone);
            }
        }
    }
    cases
}

fn everything() -> bool {
    std::env::var_os("LAB_ALL").is_some_and(|value| value == "1")
}

fn shapes() -> Vec<Case> {
    snapshots().iter().flat_map(|(name, script)| cases_of(name, script)).collect()
}

/// The scripts of `hostile_scripts.snap`: those of each field, the harmless one first.
fn hostile() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots/hostile_scripts.snap");
    let text = fs::read_to_string(&path).expect("the hostile scripts are there");
    let (_, text) = text.split_once("\n---\n").expect("a snapshot has a head");
    let mut cases = Vec::new();
    for part in text.split("=== ").skip(1) {
        let (name, script) = part.split_once('\n').expect("a name on its line");
        let (field, kind) = name.split_once(' ').expect("a field and a kind");
        if everything() || !kind.starts_with("hostile") || kind == "hostile 0" {
            cases.push(Case {
                name: format!("field {field}, {kind}"),
                snapshot: format!("{FIELD}{field}"),
                script: numbered(&hastened(&script.replace(BASE, &format!("http://{HOST}")))),
                world: World::Whole,
            });
        }
    }
    assert!(cases.len() > 50, "{} scripts", cases.len());
    cases
}

/// How the name of a group of hostile cases begins.
const FIELD: &str = "field ";

/// What a run did, without the words in it. That words were left out is said on the screen, so those lines come and go.
fn deeds(case: &Case, run: &Run) -> Vec<String> {
    let words = |number: &String| -> Option<String> {
        let marker = format!("echo @<{number}>");
        let mut lines = case.script.lines().skip_while(|line| *line != marker).skip(1);
        let line = lines.next().filter(|line| !line.starts_with("echo @<"));
        // The marker of a label stands behind it, in front of the next line's.
        let line = line.unwrap_or(":");
        (!line.starts_with("echo Warning")).then(|| line.split(' ').next().unwrap_or_default().to_owned())
    };
    let ran = |what: &String| what.starts_with("ran ").then(|| "ran".to_owned());
    let mut deeds: Vec<String> = run
        .trace
        .iter()
        .filter_map(|what| if what.starts_with("ran ") { ran(what) } else { words(what) })
        .collect();
    deeds.push(format!("{} downloads", run.asked.len()));
    deeds.push(run.end.clone());
    deeds
}

/// Boots a machine, lets it run `cases`, and compares.
fn execute(firmware: Firmware, number: u8, cases: Vec<Case>, last: &str) {
    let net = Net::flat();
    let site = Site::new(net.interface, "auto", FULL);
    let folder = site.dir.join("images/driver");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("boot.ipxe.tmpl"), DRIVER).expect("the driver script");
    let server = site.serve(&net);
    let mut spec = MachineSpec::new(firmware, number);
    spec.screen_on_serial = true;
    spec.smbios = format!("manufacturer={MANUFACTURER},product={PRODUCT},serial={SERIAL}");
    site.ask(&["job", "add", "driver", "--mac", &spec.mac]);

    let lab = Lab { cases: cases.clone(), last: last.to_owned(), ..Lab::default() };
    let lab = Arc::new(Mutex::new(lab));
    let answering = Arc::clone(&lab);
    let _host =
        WebHost::start(&net.server, HOST, move |asked| answering.lock().expect("the lab").answer(asked));
    let start = Instant::now();
    let mut machine = Machine::start(&spec, net.machines(), BRIDGE, &site.dir.0);
    let mut moved = (0, Instant::now());
    let mut booted = None;
    loop {
        let (begun, over) = {
            let lab = lab.lock().expect("the lab");
            (lab.begun, lab.over)
        };
        if over {
            break;
        }
        if begun > 0 && booted.is_none() {
            booted = Some(start.elapsed());
        }
        if begun != moved.0 {
            moved = (begun, Instant::now());
        }
        assert!(
            moved.1.elapsed() < PATIENCE,
            "stuck in {:?} for {PATIENCE:?}\n--- screen\n{}",
            begun.checked_sub(1).map(|at| &cases[at]),
            plain(&machine.serial())
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    machine.wait_for("@<last>", PATIENCE);
    let total = start.elapsed();
    let screen = plain(&machine.serial());
    let mut runs = lab.lock().expect("the lab").runs.clone();
    assert_eq!(runs.len(), cases.len());
    assert!(screen.contains(&format!("@<driver of j1 for {}>", spec.mac)), "{screen}");

    let mut problems = String::new();
    let mut executed: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (at, (case, run)) in cases.iter().zip(&mut runs).enumerate() {
        let begin = format!("@<case {at}>");
        let shown = screen.split_once(&begin).map_or("", |(_, rest)| rest);
        let shown =
            shown.split("@<case ").next().unwrap_or_default().split("@<last>").next().unwrap_or_default();
        run.trace = markers(shown);
        let wanted = predicted(case, &spec);
        let squeezed: String = shown.chars().filter(|c| !c.is_whitespace()).collect();
        let rejected: Vec<&str> = REJECTED.into_iter().filter(|word| squeezed.contains(word)).collect();
        if *run != wanted || !rejected.is_empty() {
            let _ = writeln!(
                problems,
                "=== {}\nrejected: {rejected:?}\nwanted {wanted:?}\ngot    {run:?}\n--- script\n{}--- screen\n{shown}",
                case.name, case.script
            );
        }
        executed.entry(&case.snapshot).or_default().extend(run.trace.iter().cloned());
    }
    // Not through the macro, which the test runner keeps to itself.
    let _ = writeln!(
        std::io::stderr(),
        "{firmware:?}: {} runs of {} scripts; {:?} to the first, {:?} in all",
        cases.len(),
        executed.len(),
        booted.unwrap_or_default(),
        total
    );
    assert!(problems.is_empty(), "{problems}");
    let mut harmless: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (case, run) in cases.iter().zip(&runs).filter(|(case, _)| case.snapshot.starts_with(FIELD)) {
        let deeds = deeds(case, run);
        let wanted = harmless.entry(&case.snapshot).or_insert_with(|| deeds.clone());
        assert_eq!(*wanted, deeds, "{}\n{}", case.name, case.script);
    }
    for (name, executed) in executed.iter().filter(|(name, _)| everything() && !name.starts_with(FIELD)) {
        let script = cases.iter().find(|case| case.snapshot == **name).expect("it was run").script.as_str();
        // Behind a disk that boots there is nothing more to execute.
        let unreachable = |number: &&String| {
            let before = script.split(&format!("echo @<{number}>\n")).next().unwrap_or_default();
            before.lines().next_back().is_some_and(|line| line.starts_with("sanboot --no-describe http"))
        };
        let missed: Vec<_> = markers(script)
            .into_iter()
            .filter(|number| !executed.contains(number) && !unreachable(&number))
            .collect();
        assert!(missed.is_empty(), "{name}: lines {missed:?} were never executed\n{script}");
    }
    server.stop();
}

/// What the machine is left in at the end of it all.
fn shell_at_the_end() -> String {
    let shell = &snapshots()["script_shell"];
    shell.replacen('\n', "\necho @<last>\n", 1)
}

#[test]
fn bios_ipxe_executes_every_shape_and_no_hostile_text() {
    execute(Firmware::Bios, 30, [shapes(), hostile()].concat(), &shell_at_the_end());
}

#[test]
#[ignore = "minutes of emulation: tools/test --all runs it"]
fn uefi_ipxe_executes_every_shape_and_no_hostile_text() {
    execute(Firmware::Uefi, 31, [shapes(), hostile()].concat(), &shell_at_the_end());
}
