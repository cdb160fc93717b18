//! What a decoded path names.

/// The names under which a machine asks for its script.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScriptPath {
    /// `/Altiris/iPXE/GetPxeScript.aspx`, in any case: what loaders of GSS/DS sites ask for.
    Altiris,
    /// `/boot.ipxe`.
    Boot,
    /// `/ipxe`: what our own DHCP answers name.
    Ipxe,
}

/// What a path names. Nothing is looked up yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route<'a> {
    /// `/images/NAME/FILE`: a payload file.
    Image {
        /// `NAME/FILE`, both non-empty; FILE may have folders of its own.
        path: &'a str,
    },
    /// `/loaders/NAME`: a loader of the loader table.
    Loader {
        /// Non-empty.
        name: &'a str,
    },
    /// The machine's script.
    Script(ScriptPath),
    /// `autoexec.ipxe` in any folder: the constant script.
    Autoexec,
    /// `/s/TOKEN/REST`: one boot's own URLs.
    Boot {
        /// Non-empty; letters, digits, `-` and `_` only.
        token: &'a str,
        /// Without its leading `/`; may be empty. `images/NAME/FILE`, an answer file, a call-back.
        rest: &'a str,
    },
    /// `/healthz`.
    Health,
    /// None of these.
    NotFound,
}

/// Finds out what a path names. `path` comes from `wire::http::decode_path`: it begins with one `/` and has
/// neither empty nor dot segments.
pub fn route(path: &str) -> Route<'_> {
    let Some(path) = path.strip_prefix('/') else { return Route::NotFound };
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    if path.strip_suffix("autoexec.ipxe").is_some_and(|folder| folder.is_empty() || folder.ends_with('/')) {
        return Route::Autoexec;
    }
    match (first, rest) {
        ("ipxe", "") if path == first => Route::Script(ScriptPath::Ipxe),
        ("boot.ipxe", "") if path == first => Route::Script(ScriptPath::Boot),
        ("healthz", "") if path == first => Route::Health,
        ("s", _) => boot(rest),
        ("loaders", name) if !name.is_empty() && !name.ends_with('/') => Route::Loader { name },
        // IIS does not care about case, and neither do the estates that were built on it.
        (folder, _) if folder.eq_ignore_ascii_case("images") => image(rest),
        _ if path.eq_ignore_ascii_case("Altiris/iPXE/GetPxeScript.aspx") => {
            Route::Script(ScriptPath::Altiris)
        }
        _ => Route::NotFound,
    }
}

fn image(path: &str) -> Route<'_> {
    match path.split_once('/') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() && !file.ends_with('/') => {
            Route::Image { path }
        }
        _ => Route::NotFound,
    }
}

fn boot(path: &str) -> Route<'_> {
    let (token, rest) = path.split_once('/').unwrap_or((path, ""));
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if token.is_empty() || !token.bytes().all(fits) {
        return Route::NotFound;
    }
    Route::Boot { token, rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_contract_has_its_route() {
        use ScriptPath::{Altiris, Boot, Ipxe};
        for (path, want) in [
            ("/images/win11/boot.wim", Route::Image { path: "win11/boot.wim" }),
            ("/images/win11/Boot/BCD", Route::Image { path: "win11/Boot/BCD" }),
            ("/Images/win11/boot.wim", Route::Image { path: "win11/boot.wim" }),
            ("/loaders/snponly.efi", Route::Loader { name: "snponly.efi" }),
            ("/loaders/x64/shim.efi", Route::Loader { name: "x64/shim.efi" }),
            ("/Altiris/iPXE/GetPxeScript.aspx", Route::Script(Altiris)),
            ("/altiris/ipxe/getpxescript.ASPX", Route::Script(Altiris)),
            ("/boot.ipxe", Route::Script(Boot)),
            ("/ipxe", Route::Script(Ipxe)),
            ("/autoexec.ipxe", Route::Autoexec),
            ("/loaders/autoexec.ipxe", Route::Autoexec),
            ("/images/a/autoexec.ipxe", Route::Autoexec),
            ("/a/b/c/autoexec.ipxe", Route::Autoexec),
            ("/s/aB3-_/images/a/b.wim", Route::Boot { token: "aB3-_", rest: "images/a/b.wim" }),
            ("/s/aB3/", Route::Boot { token: "aB3", rest: "" }),
            ("/s/aB3", Route::Boot { token: "aB3", rest: "" }),
            ("/healthz", Route::Health),
        ] {
            assert_eq!(route(path), want, "{path}");
        }
    }

    #[test]
    fn other_paths_name_nothing() {
        for path in [
            "",
            "/",
            "ipxe",
            "/ipxe/",
            "/ipxe/x",
            "/boot.ipxe/",
            "/healthz/",
            "/images",
            "/images/",
            "/images/a",
            "/images/a/",
            "/images/a/b/",
            "/loaders",
            "/loaders/",
            "/loaders/a/",
            "/s",
            "/s/",
            "/s/a b/x",
            "/s/a.b/x",
            "/S/aB3/x",
            "/Altiris/iPXE/GetPxeScript.aspx/",
            "/Altiris/iPXE",
            "/index.html",
            "/autoexec.ipxe/",
            "/xautoexec.ipxe",
        ] {
            assert_eq!(route(path), Route::NotFound, "{path}");
        }
    }
}
