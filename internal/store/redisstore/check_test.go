package redisstore_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/store/redisstore"
	"github.com/authsvc/authsvc/internal/store/redistest"
)

const secret = "horse-battery-staple"

// user is the documented line with a password; without are rights that it lacks.
func user(t *testing.T, without ...string) string {
	t.Helper()
	line := strings.Replace(rights(t), ">PASSWORD", ">"+secret, 1)
	for _, w := range without {
		shorter := strings.Replace(line, " "+w, "", 1)
		if shorter == line {
			t.Fatalf("%s is not in %q", w, line)
		}
		line = shorter
	}
	return line
}

func signedIn(o redisstore.Options) redisstore.Options {
	o.Username, o.Password = "authsvc", secret
	return o
}

// refused wants an error about a setting, which tells no password.
func refused(t *testing.T, o redisstore.Options, setting string, words ...string) {
	t.Helper()
	s := made(t, o)
	var err error
	await(t, "the start is refused", func() bool { // a busy machine's server may answer too late, and then it is not
		err = s.Start(t.Context())
		return err != nil
	})
	var about *redisstore.SettingError
	if !errors.As(err, &about) || about.Setting != setting || !strings.HasPrefix(err.Error(), setting+": ") {
		t.Fatalf("the start gives %v; it is %s that is wrong", err, setting)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is not in %v", w, err)
		}
	}
	if strings.Contains(err.Error(), secret) {
		t.Errorf("the password is in %v", err)
	}
}

// approved wants a check to find nothing wrong, once the server answers in time.
func approved(t *testing.T, o redisstore.Options) {
	t.Helper()
	s := made(t, o)
	await(t, "the check finds nothing wrong", func() bool {
		err := s.Check(t.Context())
		var about *redisstore.SettingError
		if errors.As(err, &about) {
			t.Fatal(err)
		}
		return err == nil
	})
}

func accepted(t *testing.T, o redisstore.Options) {
	t.Helper()
	approved(t, o)
	insist(t, up(t, o), network("a"))
}

func TestTheDocumentedRightsAreEnoughAndNoneIsTooMany(t *testing.T) {
	t.Parallel()
	r := server(t, user(t, "+command", "+cluster|slots"))
	accepted(t, signedIn(options(r.Address())))
	if n := cli(t, r, "ACL", "LOG"); n != "" {
		t.Errorf("something was tried in vain:\n%s", n)
	}
	if n := cli(t, r, "DBSIZE"); n != "1" {
		t.Errorf("beside the one counter the check left something behind: %s keys", n)
	}
	for _, right := range []string{"+eval", "+evalsha", "+get", "+set", "+del", "+time", "+publish", "+subscribe", "+ping", "~authsvc:*", "&authsvc:*"} {
		t.Run("without "+right, func(t *testing.T) {
			t.Parallel()
			word, _ := strings.CutPrefix(right, "+")
			switch right[0] {
			case '~':
				word = "key"
			case '&':
				word = "channel"
			}
			refused(t, signedIn(options(server(t, "acl-pubsub-default resetchannels", user(t, "+command", "+cluster|slots", right)).Address())), "redis.username", word, "docs/redis.md")
		})
	}
}

func TestAWrongPasswordIsNamed(t *testing.T) {
	t.Parallel()
	r := server(t, "user default off", user(t, "+command", "+cluster|slots"), "user admin on nopass ~* &* +@all")
	accepted(t, signedIn(options(r.Address())))
	o := signedIn(options(r.Address()))
	o.Password = "correct"
	refused(t, o, "redis.password_file", "WRONGPASS")
	o.Username, o.Password = "nobody", secret
	refused(t, o, "redis.password_file", "WRONGPASS")
	refused(t, options(r.Address()), "redis.password_file", "none is set")
	old := server(t, "requirepass "+secret)
	o = options(old.Address())
	refused(t, o, "redis.password_file", "none is set")
	o.Password = secret
	accepted(t, o)
}

func TestTLSThatCannotWorkIsNamed(t *testing.T) {
	t.Parallel()
	c, err := redistest.NewCertificates(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r, err := redistest.StartTLS(t.Context(), c)
	kept(t, r, err)
	o := options(r.Address())
	o.TLS = c.Client()
	accepted(t, o)
	t.Run("an authority that did not sign", func(t *testing.T) {
		t.Parallel()
		o := o
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
		refused(t, o, "redis.tls.ca_file")
	})
	t.Run("another server's name", func(t *testing.T) {
		t.Parallel()
		o := o
		o.TLS = c.Client()
		o.TLS.ServerName = "redis.example.com"
		refused(t, o, "redis.tls.ca_file", "redis.example.com")
	})
	t.Run("a server without TLS", func(t *testing.T) {
		t.Parallel()
		o := options(server(t).Address())
		o.TLS = c.Client()
		refused(t, o, "redis.tls.ca_file", "does not speak TLS")
	})
	t.Run("a server that speaks nothing else", func(t *testing.T) {
		t.Parallel()
		refused(t, options(r.Address()), "redis.tls.ca_file", "required")
	})
	t.Run("a server that wants a certificate", func(t *testing.T) {
		t.Parallel()
		// In TLS 1.3 the server says so only after the handshake, and its closing may overtake its word.
		strict, err := redistest.StartTLS(t.Context(), c, "tls-auth-clients optional", "tls-protocols TLSv1.2")
		kept(t, strict, err)
		if _, err := strict.CLI(t.Context(), "CONFIG", "SET", "tls-auth-clients", "yes"); err != nil {
			t.Fatal(err)
		}
		o := options(strict.Address())
		o.TLS = c.Client()
		refused(t, o, "redis.tls.cert_file")
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			t.Fatal(err)
		}
		o.TLS = c.Client() // the one before may still be in use
		o.TLS.Certificates = []tls.Certificate{pair}
		accepted(t, o)
	})
}

func TestAModeThatTheServerHasNotIsNamed(t *testing.T) {
	t.Parallel()
	plain, one := server(t), server(t, "cluster-enabled yes", "cluster-require-full-coverage no")
	cluster, sentinel := options(plain.Address()), options(plain.Address())
	cluster.Mode, sentinel.Mode, sentinel.MasterName = redisstore.Cluster, redisstore.Sentinel, "main"
	refused(t, cluster, "redis.mode", plain.Address(), "single")
	refused(t, sentinel, "redis.mode", plain.Address())
	refused(t, options(one.Address()), "redis.mode", one.Address(), "cluster")
}

func TestAClusterThatLacksSlotsIsTold(t *testing.T) {
	t.Parallel()
	for _, coverage := range []string{"yes", "no"} {
		t.Run("full coverage "+coverage, func(t *testing.T) {
			t.Parallel()
			r := server(t, "cluster-enabled yes", "cluster-require-full-coverage "+coverage)
			cli(t, r, "CLUSTER", "ADDSLOTSRANGE", "0", "8191", "8193", "16383")
			o := options(r.Address())
			o.Mode = redisstore.Cluster
			s := made(t, o)
			lacking := func(err error) bool {
				var about *redisstore.SettingError
				return err != nil && !errors.As(err, &about) && strings.Contains(err.Error(), "redis-cli --cluster fix")
			}
			await(t, "the slot is missed", func() bool { return lacking(s.Check(t.Context())) })
			if err := s.Start(t.Context()); err != nil {
				t.Errorf("the start is refused: %v", err)
			}
			cli(t, r, "CLUSTER", "ADDSLOTS", "8192")
			await(t, "nothing is missed", func() bool { return s.Check(t.Context()) == nil })
		})
	}
}

func TestACommandThatTheServerHasNotIsNamed(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"EVAL", "EVALSHA", "PUBLISH"} {
		r := server(t, `rename-command `+command+` ""`)
		refused(t, options(r.Address()), "redis.addresses", "has no command "+command+",")
	}
}

func TestAServerThatDoesNotSayWhatItIsIsUsed(t *testing.T) {
	t.Parallel()
	r := server(t, `rename-command HELLO ""`) // as of a proxy that speaks RESP2
	accepted(t, options(r.Address()))
	s := up(t, redisstore.Patient(options(r.Address())))
	if waits := settle(t, patient{s}, limit.Failed, account("a")); len(waits) != 1 || waits[0] != 0 {
		t.Error(waits)
	}
	heard := listen(t, s)
	before := heard.Load()
	await(t, "hints come", func() bool { s.Announce(); return heard.Load() > before })
	refused(t, func() redisstore.Options {
		o := options(r.Address())
		o.Mode = redisstore.Cluster
		return o
	}(), "redis.mode")
}

func TestAFullRedisIsWaitedForAndNamed(t *testing.T) {
	t.Parallel()
	r := server(t, "maxmemory 1", "maxmemory-policy noeviction")
	s := open(t, redisstore.Patient(options(r.Address())))
	if err := s.Start(t.Context()); err != nil {
		t.Errorf("the start is refused: %v", err)
	}
	if err := s.Check(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "redis.addresses: Redis is full") {
		t.Errorf("the check says %v", err)
	}
	if _, err := s.Settle(t.Context(), []limit.Count{account("a")}, limit.Failed); !errors.Is(err, redisstore.ErrAway) {
		t.Errorf("a count says %v", err)
	}
	cli(t, r, "CONFIG", "SET", "maxmemory", "0")
	await(t, "there is room again", s.Up)
	settle(t, patient{s}, limit.Failed, account("a"))
}

func TestWhoIsNotThereOrLoadingIsWaitedFor(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // which never answers
	for name, address := range map[string]string{
		"nobody listens": "127.0.0.1:1", "nobody answers": l.Addr().String(), "no such name": "redis.invalid:6379",
		"LOADING": resp(t, func(args []string) string {
			if strings.EqualFold(args[0], "HELLO") && len(args) > 1 {
				return "-ERR unknown command\r\n"
			}
			return "-LOADING Redis is loading the dataset in memory\r\n"
		}),
	} {
		t.Run(name, func(t *testing.T) {
			s := made(t, options(address))
			if err := s.Start(t.Context()); err != nil {
				t.Errorf("the start is refused: %v", err)
			}
			if err := s.Check(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "redis.addresses: ") {
				t.Errorf("the check says %v", err)
			}
		})
	}
}

func TestOptionsThatSayTooLittleAreRefused(t *testing.T) {
	t.Parallel()
	good := options("127.0.0.1:1")
	for name, change := range map[string]func(*redisstore.Options){
		"no address":                    func(o *redisstore.Options) { o.Addresses = nil },
		"an unknown mode":               func(o *redisstore.Options) { o.Mode = "many" },
		"a single server of two":        func(o *redisstore.Options) { o.Addresses = []string{"a:1", "b:1"} },
		"Sentinels without a name":      func(o *redisstore.Options) { o.Mode = redisstore.Sentinel },
		"nobody to tell the keys apart": func(o *redisstore.Options) { o.Issuer = "" },
	} {
		o := good
		change(&o)
		if _, err := redisstore.New(o); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	made(t, good)
}
