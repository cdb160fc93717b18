//! Every key there is: its default, what it means, and with that the commented example.

use super::read::{FileLayer, Origin, Problem, Value};

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// `table.key`.
    pub path: &'static str,
    /// The default, as TOML writes it.
    pub default: &'static str,
}

const fn key(path: &'static str, default: &'static str) -> Key {
    Key { path, default }
}

/// All plain keys, in the example's order.
pub const KEYS: &[Key] = &[
    key("server.interfaces", "[]"),
    key("server.state_dir", "\"/var/lib/bootstorm\""),
    key("server.driver", "\"auto\""),
    key("server.zero_copy", "\"auto\""),
    key("server.cores", "0"),
    key("server.user", "\"\""),
    key("server.sandbox", "\"auto\""),
    key("server.watch_config", "false"),
    key("dhcp.mode", "\"proxy\""),
    key("dhcp.port", "67"),
    key("dhcp.boot_server_port", "0"),
    key("dhcp.authoritative", "true"),
    key("dhcp.per_circuit", "256"),
    key("dhcp.probe", "\"0s\""),
    key("dhcp.frames", "\"auto\""),
    key("dhcp.dhcp_option", "[]"),
    key("tftp.listen", "[\"0.0.0.0:69\"]"),
    key("tftp.max_blksize", "65464"),
    key("tftp.max_windowsize", "64"),
    key("tftp.single_port", "false"),
    key("tftp.frames", "\"auto\""),
    key("http.listen", "[\"0.0.0.0:4433\"]"),
    key("http.congestion", "\"\""),
    key("https.listen", "[]"),
    key("https.certificate", "\"\""),
    key("https.key", "\"\""),
    key("https.auto", "false"),
    key("admission.per_image", "0"),
    key("admission.per_subnet", "0"),
    key("admission.per_link", "0"),
    key("images.dir", "\"\""),
    key("images.trees", "[]"),
    key("loaders.dirs", "[]"),
    key("loaders.bios", "[\"undionly.kpxe\"]"),
    key("loaders.uefi_x64", "[\"snponly.efi\", \"ipxe.efi\"]"),
    key("loaders.uefi_ia32", "[]"),
    key("loaders.uefi_arm64", "[]"),
    key("loaders.wimboot", "[\"wimboot\"]"),
    key("policy.unknown", "\"menu\""),
    key("policy.menu_timeout", "\"15s\""),
    key("policy.menu_default", "\"local\""),
    key("policy.exclude", "[]"),
    key("admin.listen", "\"127.0.0.1:8081\""),
    key("admin.expect_within", "\"30m\""),
];

/// Keys of the lists of tables.
const LISTS: &[(&str, &[&str])] = &[
    (
        "dhcp.subnet",
        &["network", "range", "router", "dns", "lease", "next_server", "domain", "dhcp_option", "loader"],
    ),
    ("dhcp.reservation", &["mac", "uuid", "client_id", "circuit", "ip"]),
];

/// Variables that are read elsewhere.
pub(super) fn is_other_variable(name: &str) -> bool {
    ["BOOTSTORM_LOG", "BOOTSTORM_LOG_FORMAT", "BOOTSTORM_CONFIG", "BOOTSTORM_API", "BOOTSTORM_TOKEN"]
        .contains(&name)
}

impl Key {
    /// The environment's name for it.
    pub fn variable(&self) -> String {
        format!("BOOTSTORM_{}", self.path.replace('.', "_").to_uppercase())
    }

    /// The default as a value.
    pub fn default(&self) -> Value {
        self.parse_toml(self.default).unwrap_or(Value::Other("nothing"))
    }

    fn parse_toml(&self, text: &str) -> Option<Value> {
        let mut problems = Vec::new();
        let layer = super::read::read("", &format!("x = {text}"), &mut problems);
        problems.is_empty().then(|| layer.entries.get("x").map(|entry| entry.value.clone()))?
    }

    /// What an environment variable's text means for this key: lists with commas, numbers and truth values bare.
    pub fn value_of_text(&self, text: &str) -> Value {
        match self.default() {
            Value::List(_) => Value::List(
                text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect(),
            ),
            Value::Integer(_) => {
                text.trim().parse().map_or_else(|_| Value::Text(text.to_owned()), Value::Integer)
            }
            Value::Bool(_) => text.trim().parse().map_or_else(|_| Value::Text(text.to_owned()), Value::Bool),
            _ => Value::Text(text.to_owned()),
        }
    }
}

/// Names that are not keys.
pub(super) fn check_names(layer: &FileLayer, problems: &mut Vec<Problem>) {
    let mut unknown = |origin: &Origin, key: String, known: Vec<&str>| {
        let name = key.rsplit('.').next().unwrap_or_default();
        let near = known.iter().find(|k| distance(k, name) <= 2);
        let list = LISTS.iter().find(|(path, _)| key == *path || key.starts_with(&format!("{path}.")));
        let expected = match near {
            _ if list.is_some() => format!("tables, each headed [[{}]]", list.map_or("", |(path, _)| path)),
            Some(near) => format!("a known key (did you mean {near}?)"),
            None if known.is_empty() => format!("a known table: {}", tables().join(", ")),
            None => format!("a known key: {}", known.join(", ")),
        };
        problems.push(Problem { origin: origin.clone(), key, found: "an unknown key".into(), expected });
    };
    for (path, entry) in &layer.entries {
        if !KEYS.iter().any(|key| key.path == path) {
            unknown(&entry.origin, path.clone(), siblings(path));
        }
    }
    for (path, origin) in &layer.empty {
        // A table of ours may stand there with nothing in it.
        if !KEYS.iter().any(|key| key.path.starts_with(&format!("{path}."))) {
            unknown(origin, path.clone(), siblings(path));
        }
    }
    for (path, list) in &layer.lists {
        let Some((_, known)) = LISTS.iter().find(|(list, _)| list == path) else {
            if let Some((origin, _)) = list.first() {
                unknown(origin, path.clone(), siblings(path));
            }
            continue;
        };
        for (index, (_, table)) in list.iter().enumerate() {
            for (name, entry) in table {
                if !known.contains(&name.as_str()) {
                    unknown(&entry.origin, format!("{path}[{}].{name}", index + 1), known.to_vec());
                }
            }
        }
    }
}

fn tables() -> Vec<&'static str> {
    let mut names: Vec<&str> = KEYS.iter().filter_map(|key| key.path.split('.').next()).collect();
    names.dedup();
    names
}

fn siblings(path: &str) -> Vec<&'static str> {
    let Some((table, _)) = path.rsplit_once('.') else { return Vec::new() };
    KEYS.iter().filter_map(|key| key.path.strip_prefix(table)?.strip_prefix('.')).collect()
}

/// Edit distance, for "did you mean".
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// A commented example with every key at its default.
pub const EXAMPLE: &str = r#"# bootstorm configuration: every key, at its default. Remove what you do not change.
# A key can also be set by environment (BOOTSTORM_SERVER_STATE_DIR, lists with commas) or by flag; flags win.
# `bootstorm config check FILE` finds every mistake; `bootstorm config show --effective` says where a value came from.

[server]
interfaces = []              # where DHCP is answered; empty = every physical interface, once it has an IPv4 address
state_dir = "/var/lib/bootstorm"
driver = "auto"              # auto | uring | mio: whether io_uring is used as a sender
zero_copy = "auto"           # files leave without a copy: auto (until a device is known to copy) | off | always (to measure)
cores = 0                    # loops; 0 = one per available core
user = ""                    # started as root, become this user; "" = stay, with the few privileges that serving needs
sandbox = "auto"             # auto: as far as this kernel can | on: all of it, or no start | off
watch_config = false         # reload when this file changes, not only on SIGHUP and `bootstorm config reload`

[dhcp]
mode = "proxy"               # proxy: beside another DHCP server | full: gives addresses too | off
port = 67                    # tests use others
boot_server_port = 0         # PXE boot server; 0 = 4011, or port + 3944 when port is not 67
authoritative = true         # full mode: refuse addresses that are wrong in a listed subnet, and take up leases of before
per_circuit = 256            # addresses for unregistered machines behind one circuit of a relay; 0 = no bound
probe = "0s"                 # full mode: wait so long ("300ms") whether anybody answers, before an address is offered first
frames = "auto"              # relays and renewals past the IP stack: auto (where no packet filter is in force) | on | off
dhcp_option = []             # further options with every address: "150=10.77.0.1", "12=text:lab", "252=hex:0a0b"

# Needed in full mode, one table for each network, relayed ones too; optional in proxy mode.
# [[dhcp.subnet]]
# network = "10.77.0.0/24"
# range = "10.77.0.100-10.77.0.200"   # ignored in proxy mode
# router = "10.77.0.1"
# dns = ["10.77.0.1"]
# lease = "1h"
# next_server = "10.77.0.1"  # default: the address the request reached
# domain = "lab.example"
# dhcp_option = []           # as above, for this network
# loader = "ipxe.efi"        # PXE firmware there gets this loader, where it fits the machine
#
# [[dhcp.reservation]]         # by one of mac, uuid, client_id, circuit (a relay's option 82: whoever is on that port)
# mac = "52:54:00:00:00:01"
# ip = "10.77.0.50"

[tftp]
listen = ["0.0.0.0:69"]      # empty = no TFTP
max_blksize = 65464          # a block size is granted as asked up to this (8 to 65464)
max_windowsize = 64          # blocks (1 to 65535)
single_port = false          # answer from port 69, for NAT and containers
frames = "auto"              # small windows past the IP stack: auto (where no packet filter is in force) | on | off

[http]
listen = ["0.0.0.0:4433"]    # 4433 because GSS/DS clients expect it; add 80 or 8080 at will
congestion = ""              # congestion control, such as "cubic"; empty = the system's, or cubic or reno where that is bbr

[https]
listen = []                  # such as ["0.0.0.0:4434"]; empty = no HTTPS
certificate = ""             # PEM file, the server's own certificate first; read again when it changes
key = ""                     # PEM file, its key
auto = false                 # an own CA instead, made on first use; machines are to trust state_dir/https/ca.pem

[admission]                  # boots that may fetch at once, the others wait in line at their script; 0 = any number
per_image = 0                # of the same image
per_subnet = 0               # in the same [[dhcp.subnet]], or in the same /24 where there is none
per_link = 0                 # from the same address of this server

[images]
dir = ""                     # empty = images below state_dir
trees = []                   # further folders of images, served as they lie: a GSS/DS PXE images folder

[loaders]
dirs = []                    # empty = loaders below state_dir, then /usr/lib/ipxe
bios = ["undionly.kpxe"]     # the first that exists is offered
uefi_x64 = ["snponly.efi", "ipxe.efi"]
uefi_ia32 = []
uefi_arm64 = []
wimboot = ["wimboot"]        # looked for in the image's folder, then in dirs

[policy]
unknown = "menu"             # machines without a job: menu | local | wait | pending | silent (no DHCP answer at all)
menu_timeout = "15s"         # 0s = wait for ever
menu_default = "local"       # or an image's name
exclude = []                 # never answered, job or not: MAC addresses, or their first bytes as in "52:54:00:*"

[admin]
listen = "127.0.0.1:8081"    # API by token, /healthz, /readyz, /metrics; "" = none. Local commands use state_dir/admin.sock
expect_within = "30m"        # a machine with a job that is not seen for so long raises an alarm; 0s = never
"#;
