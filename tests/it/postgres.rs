//! One throw-away PostgreSQL cluster for this run of the test binary, and a fresh database for each who asks.
//!
//! A shell holds the server and waits for the end of its standard input, which comes when this process ends, however it
//! ends: then it stops the server and removes its files. PostgreSQL refuses to run as root, so root hands both to
//! `postgres` or `nobody`. A machine without PostgreSQL fails the tests that need it; it never skips them.

use std::{
    env, fs,
    os::unix::{fs::DirBuilderExt, fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

const PATIENCE: Duration = Duration::from_secs(120);
const MISSING: &str = "PostgreSQL's server binaries are not installed: `apt-get install postgresql` (Debian, Ubuntu), \
     `dnf install postgresql-server` (Fedora), `brew install postgresql` (macOS)";

/// Runs the server in $1 with data in $2 until standard input ends; then nothing is left of either. Each line on it ends the
/// server as a crash would, and starts it again.
const HOLD: &str = r#"
while :; do
  "$1" -D "$2/data" -k "$2" -c listen_addresses= >>"$2/log" 2>&1 &
  server=$!
  read -r line
  more=$?
  kill -QUIT "$server"
  wait "$server"
  [ "$more" -eq 0 ] || break
done
rm -rf "$2"
"#;

/// A server with its databases.
pub struct Cluster {
    dir: PathBuf,
    password: String,
    /// Never waited for: it outlives this process by a moment. Its standard input must stay open till then.
    holder: Child,
}

static CLUSTER: OnceLock<Cluster> = OnceLock::new();

/// URL of a new, empty database.
pub async fn database() -> String {
    let cluster = tokio::task::spawn_blocking(|| CLUSTER.get_or_init(Cluster::start));
    let cluster = cluster.await.expect("a cluster");
    cluster.database().await
}

/// A server of one's own, that can be restarted.
pub async fn own() -> Cluster {
    let cluster = tokio::task::spawn_blocking(Cluster::start);
    cluster.await.expect("a cluster")
}

impl Cluster {
    /// URL of a new, empty database.
    pub async fn database(&self) -> String {
        let name = format!("claviger_{}", uuid::Uuid::now_v7().simple());
        let mut connection = self.connect().await;
        let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
        connection.execute(create).await.expect("a database");
        connection.close().await.expect("closed");
        self.url(&name)
    }

    /// Ends the server as a crash would, and starts it again; returns when it answers.
    pub async fn restart(&mut self) {
        let began =
            "SELECT CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) * 1000000 AS BIGINT)";
        let mut connection = self.connect().await;
        let before: i64 = sqlx::query_scalar(began)
            .fetch_one(&mut connection)
            .await
            .expect("a time");
        let input = self.holder.stdin.as_mut().expect("an open input");
        std::io::Write::write_all(input, b"restart\n").expect("it reads");
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(mut connection) = PgConnection::connect(&self.url("postgres")).await
                && let Ok(now) = sqlx::query_scalar::<_, i64>(began)
                    .fetch_one(&mut connection)
                    .await
                && now > before
            {
                return;
            }
            assert!(Instant::now() < until, "PostgreSQL does not come back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn start() -> Self {
        let bin = binaries();
        let owner = unprivileged();
        let dir = env::temp_dir().join(format!("claviger-pg-{}", uuid::Uuid::now_v7().simple()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .expect("a directory");
        let password = uuid::Uuid::now_v7().simple().to_string();
        let password_file = dir.join("password");
        fs::write(&password_file, &password).expect("a password");
        if let Some((uid, gid)) = owner {
            for path in [&dir, &password_file] {
                chown(path, Some(uid), Some(gid)).expect("chown");
            }
        }
        let command = |program: &Path| {
            let mut command = Command::new(program);
            command.current_dir(&dir).env("LC_ALL", "C");
            if let Some((uid, gid)) = owner {
                command.uid(uid).gid(gid);
            }
            command
        };
        let made = command(&bin.join("initdb"))
            .args(["--username=claviger", "--auth=scram-sha-256"])
            .args(["--encoding=UTF8", "--no-locale", "--pgdata=data"])
            .arg(format!("--pwfile={}", password_file.display()))
            .output()
            .expect("initdb runs");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "initdb: {said}");
        let mut holder = command(Path::new("/bin/sh"))
            .args(["-c", HOLD, "sh"])
            .arg(bin.join("postgres"))
            .arg(&dir)
            .stdin(Stdio::piped())
            // Ctrl-C ends this process, and thereby the server, in this order.
            .process_group(0)
            .spawn()
            .expect("sh runs");
        let socket = dir.join(".s.PGSQL.5432");
        let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        let until = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let ended = holder.try_wait().expect("a child");
            assert!(ended.is_none(), "PostgreSQL has ended: {}", log());
            assert!(Instant::now() < until, "PostgreSQL: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Self {
            dir,
            password,
            holder,
        }
    }

    /// It accepts connections a moment before it answers them.
    async fn connect(&self) -> PgConnection {
        let until = Instant::now() + PATIENCE;
        loop {
            match PgConnection::connect(&self.url("postgres")).await {
                Ok(connection) => return connection,
                Err(e) => assert!(Instant::now() < until, "PostgreSQL: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn url(&self, database: &str) -> String {
        let (dir, password) = (self.dir.display(), &self.password);
        format!("postgres://claviger:{password}@localhost/{database}?host={dir}")
    }
}

/// Where initdb and postgres are: the newest of Debian's, or what pg_config says.
fn binaries() -> PathBuf {
    let version = |path: &PathBuf| -> Option<u32> {
        let name = path.parent()?.file_name()?;
        name.to_str()?.parse().ok()
    };
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let debian = debian
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("postgres").is_file())
        .max_by_key(version);
    debian.or_else(pg_config).expect(MISSING)
}

fn pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let bin = PathBuf::from(text.trim());
    bin.join("initdb").is_file().then_some(bin)
}

/// Who runs the server: nobody else unless we are root.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let ids = |name: &str| {
        let line = users
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let found = ids("postgres").or_else(|| ids("nobody"));
    Some(found.expect("root needs a user postgres or nobody to run PostgreSQL"))
}
