//! The command line: arguments in, exit code out. Every verb has its own file.
#![forbid(unsafe_code)]

mod args;
mod audit;
mod backup;
mod bench;
mod bench_compare;
mod config;
mod demo;
mod doctor;
mod explain;
mod https;
mod image;
mod image_loader;
mod import;
mod job;
mod listing;
mod loader;
mod machine;
mod manager;
mod output;
mod progress;
mod pulse;
mod recorder;
mod reload;
mod script;
mod serve;
mod standing;
mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

pub use args::Args;
use args::{Common, Verb};

use crate::config::{DEFAULT_FILE, Loaded, Problems, Sources, Value, load, read_file};
use crate::control::client::{Client, ClientError};

/// How a command ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Fine.
    Fine = 0,
    /// Something is wrong with what was checked or asked for.
    Wrong = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The configuration makes no sense.
    Config = 3,
    /// A privilege is missing.
    Permission = 4,
    /// Something failed while running.
    Runtime = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// What a failed command says before it ends.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl ToString) -> Self {
        Self { exit, message: message.to_string() }
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::new(Exit::Config, problems)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            error if error.is_permission() => Exit::Permission,
            ClientError::Refused { .. } => Exit::Wrong,
            _ => Exit::Runtime,
        };
        Self::new(exit, error)
    }
}

type Done = Result<Exit, Failure>;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version go to standard output and are fine; a closed pipe is no matter.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Fine.into() };
        }
    };
    let done = match args.verb {
        Verb::Serve(serve) => serve::run(&args.common, &serve),
        Verb::Demo(demo) => demo::run(&demo),
        Verb::Config(verb) => config::run(&args.common, &verb),
        Verb::Job(verb) => job::run(&args.common, &verb),
        Verb::Machine(verb) => machine::run(&args.common, &verb),
        Verb::Token(verb) => token::run(&args.common, &verb),
        Verb::Audit(verb) => audit::run(&args.common, &verb),
        Verb::Backup { file } => backup::run(&args.common, &file),
        Verb::Image(verb) => image::run(&args.common, &verb),
        Verb::Import(verb) => import::run(&args.common, &verb),
        Verb::Loader(verb) => loader::run(&args.common, &verb),
        Verb::Script(verb) => script::run(&args.common, &verb),
        Verb::Explain(explain) => explain::run(&args.common, &explain),
        Verb::Doctor(doctor) => doctor::run(&args.common, &doctor),
        Verb::Https(verb) => https::run(&args.common, &verb),
        Verb::Bench(verb) => bench::run(&verb),
        Verb::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "bootstorm", &mut text);
            output::raw(&text);
            Ok(Exit::Fine)
        }
        Verb::Man => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Args::command())
                .render(&mut text)
                .map(|()| output::raw(&text))
                .map_err(|error| Failure::new(Exit::Runtime, error))
                .map(|()| Exit::Fine)
        }
    };
    match done {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::error(&failure.message);
            failure.exit.into()
        }
    }
}

/// The file that is named, or the usual one if it is there.
fn config_file(common: &Common) -> Option<PathBuf> {
    common.config.clone().or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()))
}

/// The configuration as flags, environment and file give it.
fn load_config(common: &Common, flags: &[(&'static str, &'static str, Value)]) -> Result<Loaded, Problems> {
    let file = config_file(common).map(|path| read_file(&path)).transpose()?;
    let mut all = Vec::new();
    if let Some(state) = &common.state {
        all.push(("server.state_dir", "--state", Value::Text(state.display().to_string())));
    }
    if let Some(images) = &common.images {
        all.push(("images.dir", "--images", Value::Text(images.display().to_string())));
    }
    all.extend(flags.iter().cloned());
    // A variable of somebody else may hold any bytes.
    let text = |part: std::ffi::OsString| part.to_string_lossy().into_owned();
    let environment = std::env::vars_os()
        .map(|(name, value)| (text(name), value))
        .filter(|(name, _)| name.starts_with("BOOTSTORM_"))
        .map(|(name, value)| (name, text(value)))
        .collect();
    load(&Sources { file, environment, flags: all })
}

/// A client for the server these arguments mean.
fn client(common: &Common) -> Result<Client, Failure> {
    match &common.api {
        Some(server) => Ok(Client::remote(server.clone(), common.token.clone())),
        None => Ok(Client::new(load_config(common, &[])?.plan.admin.socket)),
    }
}
