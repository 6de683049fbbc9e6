//! Protocols that are not HTTP, without configuration: PostgreSQL (client first, with its own TLS
//! upgrade), MariaDB and SMTP (server first), Redis.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use heddle_tests::lab::Options;
use heddle_tests::real::{Program, Ran, Side, Stage, Suite, eventually, require, sides};

const NEEDED: &[Program] = &[
    Program::Debian { name: "curl", package: "curl" },
    Program::Debian { name: "openssl", package: "openssl" },
    Program::Debian { name: "psql", package: "postgresql-client" },
    Program::Postgres("initdb"),
    Program::Debian { name: "mariadbd", package: "mariadb-server" },
    Program::Debian { name: "mariadb", package: "mariadb-client" },
    Program::Debian { name: "redis-server", package: "redis-server" },
    Program::Debian { name: "redis-cli", package: "redis-tools" },
    Program::Debian { name: "redis-benchmark", package: "redis-tools" },
    Program::Python("aiosmtpd"),
];

#[test]
fn databases_and_mail_speak_through_the_mesh() {
    require(NEEDED).unwrap();
    let postgres = Program::Postgres("initdb").find().unwrap();
    let postgres = postgres.parent().unwrap().display().to_string();
    let manifests = include_str!("../data/real/databases.yaml").replace("@PGBIN@", &postgres);
    let stage = Stage::up(&sides(&manifests), Options::default()).unwrap();
    let mut suite = Suite::default();
    suite.all(&stage, "postgres with its own TLS", |stage, side| {
        let ran = psql(
            stage,
            side,
            "require",
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
        );
        ran?.expect_out("t\n").map(drop)
    });
    suite.all(&stage, "postgres without TLS", |stage, side| {
        let ran = psql(
            stage,
            side,
            "disable",
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
        );
        ran?.expect_out("f\n").map(drop)
    });
    suite.all(&stage, "postgres with bulk data", postgres_bulk);
    suite.all(&stage, "mariadb", mariadb);
    suite.all(&stage, "redis", redis);
    suite.all(&stage, "smtp", smtp);
    suite.all(&stage, "smtp greets a silent client", |stage, side| {
        let command = format!("nc -w 1 {} 7777 < /dev/null", side.host("stores"));
        stage.run(&side.client("client"), &["sh", "-c", &command])?.expect_out("220 ").map(drop)
    });
    suite.finish();
}

fn psql(stage: &Stage, side: &Side, tls: &str, sql: &str) -> anyhow::Result<Ran> {
    let host = side.host("stores");
    let target = format!("host={host} port=15432 user=app dbname=postgres sslmode={tls}");
    stage.run(&side.client("client"), &["psql", &target, "-v", "ON_ERROR_STOP=1", "-Atc", sql])
}

fn postgres_bulk(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let mut rows = String::new();
    for row in 0..200_000 {
        writeln!(rows, "{row}\ttext of row {row}")?;
    }
    let file = stage.share("rows", rows.as_bytes())?;
    psql(stage, side, "require", "DROP TABLE IF EXISTS t; CREATE TABLE t (i int, s text)")?.ok()?;
    psql(stage, side, "require", &format!("\\copy t from '{file}'"))?.ok()?;
    let count = psql(stage, side, "require", "SELECT count(*), sum(i) FROM t")?.ok()?;
    ensure!(count.out == "200000|19999900000\n", "{}", count.out);
    let back =
        psql(stage, side, "disable", "\\copy (select * from t order by i) to stdout")?.ok()?;
    ensure!(back.out == rows, "what came back differs");
    Ok(())
}

fn mariadb(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let host = side.host("stores");
    let sql = |sql: &str| -> anyhow::Result<Ran> {
        let argv = [
            "mariadb",
            "--no-defaults",
            "-h",
            &host,
            "-P",
            "3310",
            "-u",
            "app",
            "-psecret",
            "-Ne",
            sql,
        ];
        stage.run(&side.client("client"), &argv)
    };
    sql("SELECT 41 + 1")?.expect_out("42\n")?;
    // One after the other: the memory of who speaks first must not get in the way.
    for _ in 0..5 {
        sql("SELECT 1")?.expect_out("1\n")?;
    }
    sql("CREATE OR REPLACE TABLE shop.t (s LONGTEXT); INSERT INTO shop.t VALUES (REPEAT('x', 3000000))")?
        .ok()?;
    sql("SELECT LENGTH(s) FROM shop.t")?.expect_out("3000000\n")?;
    ensure!(sql("SELECT s FROM shop.t")?.ok()?.out.len() == 3_000_001);
    Ok(())
}

fn redis(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let host = side.host("stores");
    let cli = |args: &[&str]| -> anyhow::Result<Ran> {
        let mut argv = vec!["redis-cli", "-h", &host, "-p", "6380"];
        argv.extend(args);
        stage.run(&side.client("client"), &argv)?.ok()
    };
    ensure!(cli(&["SET", "key", "value"])?.out == "OK\n");
    ensure!(cli(&["GET", "key"])?.out == "value\n");
    let argv = [
        "redis-benchmark",
        "-h",
        &host,
        "-p",
        "6380",
        "-q",
        "-n",
        "5000",
        "-c",
        "20",
        "-P",
        "8",
        "-t",
        "set,get,lpush",
    ];
    let ran = stage.run(&side.client("client"), &argv)?.ok()?;
    ensure!(ran.out.matches("requests per second").count() >= 3, "{}", ran.excerpt());
    Ok(())
}

fn smtp(stage: &Stage, side: &Side) -> anyhow::Result<()> {
    let mark = format!("from {} to {}", side.client, side.server);
    let mail = stage.share("mail", format!("Subject: hello\n\n{mark}\n").as_bytes())?;
    let url = format!("smtp://{}:7777", side.host("stores"));
    let argv = [
        "curl",
        "-sS",
        "-m",
        "20",
        &url,
        "--mail-from",
        "a@example.org",
        "--mail-rcpt",
        "b@example.org",
        "-T",
        &mail,
    ];
    stage.run(&side.client("client"), &argv)?.ok().context("send")?;
    let inbox = stage.shared(&format!("{}.mail", side.server));
    eventually("the mail arrives", Duration::from_secs(5), || {
        std::fs::read_to_string(&inbox).is_ok_and(|text| text.contains(&mark))
    })
}
