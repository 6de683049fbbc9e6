//! `heddle-app`: the application and the clients of the demo, the tests and the benches, in one
//! small program. Everything it does is in `heddle_tests::{app, load, capture}`.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use heddle_tests::{app, capture, load};

#[derive(Parser)]
#[command(name = "heddle-app", about = "The application and the clients of Heddle's demo")]
enum Command {
    /// HTTP/1.1 and h2c server that says what it saw.
    Serve(app::ServeOptions),
    /// HTTP/1.1 server that vanishes where the path says: `/vanish/before/length/rst`.
    Faulty(app::ServeOptions),
    /// TCP server that returns every byte and honours half-close.
    Echo {
        #[arg(long, default_value = "[::]:8080")]
        listen: SocketAddr,
    },
    /// TCP server that greets first and then echoes.
    SpeakFirst {
        #[arg(long, default_value = "[::]:8080")]
        listen: SocketAddr,
        #[arg(long, default_value = "220 ready")]
        greeting: String,
    },
    /// One request; its answer as JSON. Exits 1 when there is none.
    Call(app::CallOptions),
    /// Many requests; one line of JSON per 100 ms. Exits 1 when any failed.
    Load(load::Options),
    /// Watches the wire of this network namespace; prints "capturing", and the counts at the end.
    Capture(capture::Options),
}

fn main() -> ExitCode {
    match run(Command::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("heddle-app: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(dispatch(command));
    // Reading standard input holds a thread that only ends with the input; it is not waited for.
    runtime.shutdown_background();
    ended
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(options) => app::serve(&options).await?,
        Command::Faulty(options) => app::faulty(&options).await?,
        Command::Echo { listen } => app::echo(listen).await?,
        Command::SpeakFirst { listen, greeting } => app::speak_first(listen, greeting).await?,
        Command::Call(options) => print_line(&app::call(&options).await?)?,
        Command::Load(options) => {
            let summary = load::run(options, print_line).await?;
            return Ok(if summary.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        Command::Capture(options) => {
            let seen = capture::run(options, || print_line(&"capturing")).await?;
            print_line(&seen)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_line(value: &impl serde::Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}
