//! An own certificate authority for networks that have none: made on first use, kept in the state folder.
//!
//! RSA throughout: iPXE has ECDSA only since December 2025. No OCSP responder and no issuer address is named, since iPXE
//! would ask them before every download and an isolated network has neither.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, SanType, date_time_ymd,
};

use super::certificates::TlsError;

/// Folder of the own authority, below the state folder.
pub const OWN_FOLDER: &str = "https";
/// The certificate that machines are to trust, in that folder.
pub const AUTHORITY_FILE: &str = "ca.pem";
const AUTHORITY_KEY: &str = "ca.key";
/// The server's own certificate, followed by the authority's: iPXE knows its trust anchors by fingerprint alone and
/// must be shown them.
pub(super) const CERTIFICATE: &str = "server.pem";
pub(super) const KEY: &str = "server.key";
/// What the server's certificate was made for, one name a line.
const NAMES: &str = "server.names";

const DAY: Duration = Duration::from_secs(86_400);
/// Clocks of machines may be behind ours.
const BACKDATED: Duration = Duration::from_secs(2 * 86_400);
const AUTHORITY_DAYS: u32 = 20 * 365;
const CERTIFICATE_DAYS: u32 = 397;
/// A certificate this old is replaced, long before it ends.
const RENEWED_AFTER: Duration = Duration::from_secs(300 * 86_400);

/// Sees to it that the folder has an authority, and a certificate of it for these addresses and names.
pub(super) fn prepare(folder: &Path, addresses: &[Ipv4Addr], host: Option<&str>) -> Result<(), TlsError> {
    let fail = |path: &Path, error: io::Error| TlsError::file(path, &error);
    let (ca_path, ca_key_path) = (folder.join(AUTHORITY_FILE), folder.join(AUTHORITY_KEY));
    let (path, key_path, names_path) = (folder.join(CERTIFICATE), folder.join(KEY), folder.join(NAMES));
    let names = names_of(addresses, host);
    let listed = names.iter().map(|name| format!("{}\n", shown(name))).collect::<String>();
    let listed_already = fs::read_to_string(&names_path).is_ok_and(|text| text == listed);
    if listed_already && ca_path.exists() && key_path.exists() && is_young(&path) {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| fail(folder, e))?;
    let key = match fs::read_to_string(&ca_key_path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|e| TlsError::bad(&ca_key_path, &e))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072)
                .map_err(|e| TlsError::bad(&ca_key_path, &e))?;
            write_private(&ca_key_path, &key.serialize_pem()).map_err(|e| fail(&ca_key_path, e))?;
            key
        }
        Err(error) => return Err(fail(&ca_key_path, error)),
    };
    let params = authority_params(&key);
    let ca_pem = match fs::read_to_string(&ca_path) {
        Ok(pem) => pem,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let pem = params.self_signed(&key).map_err(|e| TlsError::bad(&ca_path, &e))?.pem();
            write_whole(&ca_path, &pem, 0o644).map_err(|e| fail(&ca_path, e))?;
            pem
        }
        Err(error) => return Err(fail(&ca_path, error)),
    };
    let server_key = match fs::read_to_string(&key_path) {
        Ok(pem) => KeyPair::from_pem(&pem).map_err(|e| TlsError::bad(&key_path, &e))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)
                .map_err(|e| TlsError::bad(&key_path, &e))?;
            write_private(&key_path, &key.serialize_pem()).map_err(|e| fail(&key_path, e))?;
            key
        }
        Err(error) => return Err(fail(&key_path, error)),
    };
    let issuer = Issuer::new(params, key);
    let pem = certificate_params(names, host)
        .signed_by(&server_key, &issuer)
        .map_err(|e| TlsError::bad(&path, &e))?
        .pem();
    write_whole(&path, &format!("{pem}{ca_pem}"), 0o644).map_err(|e| fail(&path, e))?;
    write_whole(&names_path, &listed, 0o644).map_err(|e| fail(&names_path, e))
}

fn is_young(path: &Path) -> bool {
    let made = fs::metadata(path).and_then(|meta| meta.modified());
    made.is_ok_and(|made| SystemTime::now().duration_since(made).is_ok_and(|age| age < RENEWED_AFTER))
}

/// The same for the same key: a certificate is issued by them long after they signed themselves.
fn authority_params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mark: String = params.key_identifier(key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, format!("bootstorm CA {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, AUTHORITY_DAYS);
    params
}

fn certificate_params(names: Vec<SanType>, host: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, host.unwrap_or("bootstorm"));
    params.subject_alt_names = names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, CERTIFICATE_DAYS);
    params
}

fn valid_for(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let begin = date_time_ymd(1970, 1, 1) + now.saturating_sub(BACKDATED);
    params.not_before = begin;
    params.not_after = begin + DAY * days;
}

/// What clients may call this server: each of its addresses, its name, and itself.
fn names_of(addresses: &[Ipv4Addr], host: Option<&str>) -> Vec<SanType> {
    let mut addresses = addresses.to_vec();
    addresses.push(Ipv4Addr::LOCALHOST);
    addresses.sort_unstable();
    addresses.dedup();
    let hosts = host.into_iter().filter(|host| *host != "localhost").chain(["localhost"]);
    let hosts = hosts.filter_map(|host| Some(SanType::DnsName(host.try_into().ok()?)));
    hosts.chain(addresses.into_iter().map(|addr| SanType::IpAddress(addr.into()))).collect()
}

fn shown(name: &SanType) -> String {
    match name {
        SanType::IpAddress(addr) => addr.to_string(),
        SanType::DnsName(name) => name.as_str().to_owned(),
        other => format!("{other:?}"),
    }
}

/// For the owner alone, from its first byte on.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    write_whole(path, text, 0o600)
}

/// All of it or nothing, also across a crash: a name is given to bytes that are on the disk.
fn write_whole(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}
