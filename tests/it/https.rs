//! HTTPS with real clients: curl, openssl, and (with `tools/test --all`) a browser.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use labkit::{Firmware, Machine, MachineSpec, Process, run, tool};

use crate::server::{BRIDGE, FULL, Net, SOON, Site};

const OWN: &str = "[https]\nlisten = [\"0.0.0.0:4434\"]\nauto = true\n";

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn site(net: &Net, config: &str) -> Site {
    let site = Site::new(net.interface, "auto", &format!("{config}{FULL}"));
    let folder = site.dir.join("images/data");
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("file.bin"), pattern(3_000_001)).expect("the file");
    site
}

/// The own CA's certificate, as the command prints it.
fn authority(site: &Site) -> PathBuf {
    let path = site.dir.join("trusted.pem");
    fs::write(&path, site.ask(&["https", "ca"])).expect("the CA's certificate");
    path
}

fn curl(net: &Net, ca: &Path, words: &[&str]) -> Output {
    let mut command = net.server.command(tool("curl", "curl"));
    command
        .args(["-sS", "-f", "--max-time", "30", "--cacert"])
        .arg(ca)
        .args(words)
        .output()
        .expect("curl runs")
}

/// `openssl s_client` asking for `/healthz`; what it says, answer included.
fn s_client(net: &Net, ca: &Path, words: &[&str]) -> String {
    s_client_with(net, ca, words, None)
}

/// The same, with a configuration of openssl's own.
fn s_client_with(net: &Net, ca: &Path, words: &[&str], config: Option<&Path>) -> String {
    let mut command = net.server.command(tool("openssl", "openssl"));
    if let Some(config) = config {
        command.env("OPENSSL_CONF", config);
    }
    command.args(["s_client", "-connect", "10.77.0.1:4434", "-ign_eof", "-CAfile"]).arg(ca).args(words);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl runs");
    let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    // It may have given up by then.
    let _ = child.stdin.take().expect("a pipe").write_all(request);
    let output = child.wait_with_output().expect("openssl ends");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn curl_and_openssl_are_served_by_tls_1_2_and_1_3() {
    let net = Net::flat();
    let site = site(&net, OWN);
    let server = site.serve(&net);
    assert!(server.ready.contains(" https=0.0.0.0:4434 "), "{}", server.ready);
    let ca = authority(&site);
    let content = pattern(3_000_001);
    let url = "https://10.77.0.1:4434/images/data/file.bin";
    for version in ["1.2", "1.3"] {
        let words = [&format!("--tlsv{version}") as &str, "--tls-max", version];
        let output = curl(&net, &ca, &[words[0], words[1], words[2], url]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == content, "TLS {version}");
        let output = curl(&net, &ca, &[words[0], words[1], words[2], "-r", "65530-131080", url]);
        assert!(output.stdout == content[65_530..=131_080], "TLS {version}, a range");
    }
    let script = curl(&net, &ca, &["-A", "iPXE/1.21.1", "https://10.77.0.1:4434/ipxe?mac=52:54:00:00:00:07"]);
    let script = String::from_utf8_lossy(&script.stdout).into_owned();
    assert!(script.starts_with("#!ipxe") && script.contains("https://10.77.0.1:4434/"), "{script}");
    assert!(!script.contains("http://"), "{script}");
    // Who does not trust the CA gets nothing, and says so itself.
    let strangers = curl(&net, Path::new("/dev/null"), &[url]);
    assert!(!strangers.status.success() && strangers.stdout.is_empty());

    let verified = ["-verify_return_error", "-verify_ip", "10.77.0.1"];
    for (words, protocol) in [
        (&["-tls1_2"][..], "TLSv1.2"),
        (&["-tls1_3"], "TLSv1.3"),
        // iPXE always names what the URL names, addresses too.
        (&["-tls1_2", "-servername", "10.77.0.1"], "TLSv1.2"),
        (&["-tls1_3", "-servername", "nobody.example"], "TLSv1.3"),
        // The suites, the signature and the group of an iPXE of 2024.
        (
            &[
                "-tls1_2",
                "-cipher",
                "ECDHE-RSA-AES128-GCM-SHA256",
                "-sigalgs",
                "RSA+SHA256",
                "-groups",
                "X25519",
            ],
            "TLSv1.2",
        ),
        (&["-tls1_2", "-maxfraglen", "4096"], "TLSv1.2"),
    ] {
        let said = s_client(&net, &ca, &[words, &verified].concat());
        assert!(said.contains("HTTP/1.1 200 OK") && said.contains("\nok"), "{words:?}: {said}");
        assert!(said.contains(&format!("{protocol}, Cipher")), "{words:?}: {said}");
        assert!(said.contains("Verify return code: 0 (ok)"), "{words:?}: {said}");
    }
    // iPXE before October 2025 has no extended master secret.
    let plain = site.dir.join("openssl.cnf");
    let sections = "openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nOptions = -ExtendedMasterSecret\n";
    fs::write(&plain, sections).expect("a configuration");
    let said = s_client_with(&net, &ca, &["-tls1_2"], Some(&plain));
    assert!(said.contains("200 OK") && said.contains("Extended master secret: no"), "{said}");
    // An iPXE before 2024 has RSA key exchange alone: an alert, and the next one is served.
    let said = s_client(&net, &ca, &["-tls1_2", "-cipher", "AES128-GCM-SHA256"]);
    assert!(said.contains("handshake failure") && !said.contains("200 OK"), "{said}");
    assert_eq!(server.metric(&net, "bootstorm_https_handshakes_total{outcome=\"incompatible\"}"), 1);
    assert!(server.metric(&net, "bootstorm_https_handshakes_total{outcome=\"tls-1.2\"}") >= 7);

    // The certificate says nothing that would make iPXE ask elsewhere.
    let text = run(Command::new(tool("openssl", "openssl"))
        .args(["x509", "-noout", "-text", "-in"])
        .arg(site.dir.join("state/https/server.pem")));
    for (word, there) in [
        ("IP Address:10.77.0.1", true),
        ("IP Address:127.0.0.1", true),
        ("DNS:localhost", true),
        ("rsaEncryption", true),
        ("TLS Web Server Authentication", true),
        ("OCSP", false),
        ("Authority Information Access", false),
        ("CRL Distribution", false),
    ] {
        assert_eq!(text.contains(word), there, "{word} in {text}");
    }
    server.stop();
}

/// A certificate that signs itself, under `name`.
fn self_signed(site: &Site, name: &str, key_type: &str) {
    let mut command = Command::new(tool("openssl", "openssl"));
    command.args(["req", "-x509", "-newkey", key_type, "-nodes", "-days", "30", "-subj"]);
    command.arg(format!("/CN={name}")).args(["-addext", "subjectAltName=IP:10.77.0.1"]);
    if key_type == "ec" {
        command.args(["-pkeyopt", "ec_paramgen_curve:P-256"]);
    }
    command.arg("-keyout").arg(site.dir.join(&format!("{name}.key")));
    run(command.arg("-out").arg(site.dir.join(&format!("{name}.pem"))));
}

#[test]
fn a_certificate_replaced_on_disk_is_shown_from_then_on() {
    let net = Net::flat();
    let mut site = site(&net, "");
    self_signed(&site, "one", "rsa:2048");
    self_signed(&site, "two", "ec");
    let replace = |site: &Site, name: &str| {
        for end in ["key", "pem"] {
            let unfinished = site.dir.join("unfinished");
            fs::copy(site.dir.join(&format!("{name}.{end}")), &unfinished).expect("a copy");
            fs::rename(unfinished, site.dir.join(&format!("shown.{end}"))).expect("a rename");
        }
    };
    replace(&site, "one");
    let paths = format!(
        "[https]\nlisten = [\"0.0.0.0:4434\"]\ncertificate = \"{}\"\nkey = \"{}\"\n",
        site.dir.join("shown.pem").display(),
        site.dir.join("shown.key").display()
    );
    site.append(&paths);
    let server = site.serve(&net);
    let serves = |name: &str| {
        let ca = site.dir.join(&format!("{name}.pem"));
        let output = curl(&net, &ca, &["https://10.77.0.1:4434/healthz"]);
        output.status.success() && output.stdout == b"ok\n"
    };
    assert!(serves("one") && !serves("two"));
    // A download that runs while the certificate changes goes on with the old one.
    replace(&site, "two");
    let start = Instant::now();
    while !serves("two") {
        assert!(start.elapsed() < SOON, "the new certificate is never shown: {}", server.process.output());
    }
    assert!(!serves("one"));
    server.stop();
}

#[test]
fn a_key_of_another_certificate_is_no_start() {
    let net = Net::flat();
    let mut site = site(&net, "");
    self_signed(&site, "one", "rsa:2048");
    self_signed(&site, "two", "rsa:2048");
    site.append(&format!(
        "[https]\nlisten = [\"0.0.0.0:4434\"]\ncertificate = \"{}\"\nkey = \"{}\"\n",
        site.dir.join("one.pem").display(),
        site.dir.join("two.key").display()
    ));
    let mut command = net.server.command(crate::server::binary());
    let output = command.arg("serve").arg("--config").arg(site.config()).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("two.key: not the key of") && said.contains("one.pem"), "{said}");
}

#[test]
#[ignore = "needs chromium: tools/test --all installs it and runs this"]
fn a_browser_is_served() {
    let net = Net::flat();
    let site = site(&net, OWN);
    let server = site.serve(&net);
    // The browser is told the key, since its own list of authorities is not to be changed by a test.
    let pin = "openssl x509 -pubkey -noout -in \"$0\" | openssl pkey -pubin -outform der | openssl dgst -sha256 \
               -binary | base64";
    let pin = run(Command::new("bash").args(["-c", pin]).arg(site.dir.join("state/https/server.pem")));
    let mut command = net.server.command(tool("chromium", "chromium"));
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", site.dir.join("browser").display()));
    command.arg(format!("--ignore-certificate-errors-spki-list={}", pin.trim()));
    let page = run(command.arg("https://10.77.0.1:4434/boot.ipxe"));
    assert!(page.contains("<html") && page.contains("data"), "{page}");
    server.stop();
}

#[test]
fn doctor_says_which_loaders_cannot_fetch_by_https() {
    let net = Net::flat();
    let site = site(&net, OWN);
    let server = site.serve(&net);
    let mut command = net.server.command(crate::server::binary());
    let output = command.arg("doctor").arg("--config").arg(site.config()).output().expect("doctor runs");
    let said = String::from_utf8_lossy(&output.stdout);
    // Debian 12's, of 2019: the one for UEFI shows that it has none, the compressed one for BIOS is known by its hash.
    for name in ["snponly.efi", "undionly.kpxe"] {
        let about = said.lines().find(|line| line.contains("loader-without-https") && line.contains(name));
        assert!(about.is_some_and(|line| line.contains("Operation not supported")), "{name}: {said}");
    }
    server.stop();
}

/// From power-on to what firmware or iPXE says of an https URL, on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
#[ignore = "boots a machine to see it fail: tools/test --all runs it"]
fn debians_ipxe_says_that_https_is_not_supported() {
    let net = Net::flat();
    let site = site(&net, OWN);
    let folder = site.dir.join("images/secure");
    fs::create_dir_all(&folder).expect("a folder");
    let script =
        "#!ipxe\necho by https\nchain https://10.77.0.1:4434/ipxe || echo it came to ${errno}\nshell\n";
    fs::write(folder.join("boot.ipxe"), script).expect("a script");
    fs::write(folder.join("image.toml"), "kind = \"script\"\n").expect("image.toml");
    let server = site.serve(&net);
    for (firmware, number) in [(Firmware::Bios, 0x91), (Firmware::Uefi, 0x92)] {
        let mut spec = MachineSpec::new(firmware, number);
        spec.screen_on_serial = true;
        site.ask(&["job", "add", "secure", "--mac", &spec.mac]);
        let mut machine = Machine::start(&spec, net.machines(), BRIDGE, &site.dir.0);
        machine.wait_for("it came to", PATIENCE);
        let said = machine.serial();
        assert!(said.contains("Operation not supported"), "{said}");
    }
    // Not even a connection was made.
    assert_eq!(server.metric(&net, "bootstorm_https_handshakes_total{outcome=\"incompatible\"}"), 0);
    server.stop();
}

/// What a firmware takes for its list of trusted authorities (UEFI 2.10 §32.4.1, EFI_SIGNATURE_LIST of one X.509
/// certificate).
fn signature_list(certificate: &Path) -> Vec<u8> {
    let mut command = Command::new(tool("openssl", "openssl"));
    let der =
        command.args(["x509", "-outform", "der", "-in"]).arg(certificate).output().expect("openssl runs");
    assert!(der.status.success() && !der.stdout.is_empty());
    // EFI_CERT_X509_GUID, a5c059a1-94e4-4aa7-87b5-ab155c2bf072, as it lies in memory.
    let kind =
        [0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72];
    let owner = [0x42; 16];
    let signature_len = (owner.len() + der.stdout.len()) as u32;
    let mut list = kind.to_vec();
    for number in [28 + signature_len, 0, signature_len] {
        list.extend(number.to_le_bytes());
    }
    list.extend(owner);
    list.extend(der.stdout);
    list
}

/// Debian 12's OVMF (edk2 2022.11) has TLS and is given the CA, so that nothing but the handshake is between it and its loader.
/// It offers RSA and DHE for the exchange of keys, and fails. A newer build that has ECDHE is served, and is welcome to.
#[test]
#[ignore = "boots a machine to see it fail: tools/test --all runs it"]
fn debians_uefi_firmware_comes_by_https_and_is_counted_as_incompatible() {
    let mut net = Net::flat();
    let mut site = Site::new(net.interface, "auto", OWN);
    site.append("[dhcp]\nmode = \"off\"\n");
    let server = site.serve(&net);
    let authorities = site.dir.join("cacerts");
    fs::write(&authorities, signature_list(&authority(&site))).expect("a list");
    let loader = "https://10.77.0.1:4434/loaders/snponly.efi";
    let mut command = net.server.command(tool("dnsmasq", "dnsmasq-base"));
    command.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--log-dhcp", "--user=root"]);
    command.args(["--interface=lan", "--bind-interfaces", "--dhcp-range=10.77.0.100,10.77.0.200,1h"]);
    command.args(["--dhcp-vendorclass=set:http,HTTPClient", "--dhcp-option-force=tag:http,60,HTTPClient"]);
    command.arg(format!("--dhcp-boot=tag:http,{loader}"));
    command.arg(format!("--dhcp-leasefile={}", site.dir.join("leases").display()));
    let mut dnsmasq = Process::spawn("dnsmasq", &mut command, &site.dir.join("dnsmasq.log"));
    dnsmasq.wait_for("DHCP, IP range", SOON);
    net.helpers.push(dnsmasq);
    let mut spec = MachineSpec::new(Firmware::UefiHttp, 0x93);
    spec.firmware_files.push(("etc/edk2/https/cacerts", authorities));
    let mut machine = Machine::start(&spec, net.machines(), BRIDGE, &site.dir.0);
    machine.wait_for(loader, PATIENCE);
    let outcome = machine.see(&["Could not retrieve NBP file size", "iPXE initialising devices"], PATIENCE);
    let count = |outcome: &str| {
        server.metric(&net, &format!("bootstorm_https_handshakes_total{{outcome=\"{outcome}\"}}"))
    };
    match outcome {
        Some(0) => assert!(count("incompatible") > 0, "{}", machine.serial()),
        Some(_) => assert!(count("tls-1.2") + count("tls-1.3") > 0),
        None => panic!("neither an error nor a loader:\n{}", machine.serial()),
    }
    server.stop();
}
