package rest

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

// route is one way into one RPC, read from the google.api.http option of the method.
type route struct {
	verb     string // of HTTP
	template string
	full     string   // the RPC's full name
	body     bool     // the request has a JSON body
	query    []string // the query parameters it may have
	limit    int64    // of the body, in bytes
}

// place is a path, and what may be done there.
type place struct {
	template string
	segments []string // of a path with variables; nil for a literal one
	routes   []route
	extra    http.Handler // another door's; nil for this one's routes
}

func (p *place) route(verb string) *route {
	for i := range p.routes {
		if p.routes[i].verb == verb {
			return &p.routes[i]
		}
	}
	return nil
}

// allow gives the value of the Allow header.
func (p *place) allow() string {
	verbs := make([]string, 0, len(p.routes)+1)
	for i := range p.routes {
		verbs = append(verbs, p.routes[i].verb)
	}
	slices.Sort(verbs)
	return strings.Join(append(verbs, http.MethodOptions), ", ")
}

// table finds places by path, exactly: no case folding, no cleaning, no escapes.
type table struct {
	literal  map[string]*place
	variable []*place
}

func (t *table) find(r *http.Request) *place {
	// RawPath is set when the path was sent in another than its plain spelling; every path of ours is plain.
	if r.URL.RawPath != "" {
		return nil
	}
	if p := t.literal[r.URL.Path]; p != nil {
		return p
	}
	for _, p := range t.variable {
		if matches(p.segments, r.URL.Path) {
			return p
		}
	}
	return nil
}

func matches(segments []string, path string) bool {
	for i, want := range segments {
		if !strings.HasPrefix(path, "/") {
			return false
		}
		path = path[1:]
		end := strings.IndexByte(path, '/')
		if end < 0 {
			end = len(path)
		}
		got := path[:end]
		path = path[end:]
		if want == "" {
			// A variable: an identifier of ours, so that nothing else reaches the gateway's own path parser.
			if !wellFormedID(got) {
				return false
			}
		} else if got != want {
			return false
		}
		if i == len(segments)-1 {
			return path == ""
		}
	}
	return false
}

func (t *table) add(r route) error {
	p := t.literal[r.template]
	for _, v := range t.variable {
		if v.template == r.template {
			p = v
		}
	}
	if p == nil {
		p = &place{template: r.template}
		if strings.Contains(r.template, "{") {
			for _, s := range strings.Split(strings.TrimPrefix(r.template, "/"), "/") {
				if strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}") && !strings.ContainsAny(s, "=:*") {
					s = ""
				}
				if strings.ContainsAny(s, "{}*") {
					return fmt.Errorf("rest: the path %q of %s is not understood", r.template, r.full)
				}
				p.segments = append(p.segments, s)
			}
			t.variable = append(t.variable, p)
		} else {
			t.literal[r.template] = p
		}
	}
	if p.route(r.verb) != nil {
		return fmt.Errorf("rest: %s %s is claimed twice", r.verb, r.template)
	}
	p.routes = append(p.routes, r)
	return nil
}

// routesOf reads the routes of one service from its descriptor. A service without any is fine: it has no REST face.
func routesOf(service string, limit, batchLimit int64) ([]route, error) {
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil, fmt.Errorf("rest: no descriptor of %s: %w", service, err)
	}
	sd, ok := found.(protoreflect.ServiceDescriptor)
	if !ok {
		return nil, fmt.Errorf("rest: %s is not a service", service)
	}
	var routes []route
	for i := range sd.Methods().Len() {
		m := sd.Methods().Get(i)
		rule, _ := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
		if rule == nil || rule.GetPattern() == nil {
			continue
		}
		r, err := routeOf(m, rule)
		if err != nil {
			return nil, err
		}
		r.limit = limit
		if r.full == authsvcv1.AuthService_BatchIntrospect_FullMethodName {
			r.limit = batchLimit
		}
		routes = append(routes, r)
	}
	return routes, nil
}

func routeOf(m protoreflect.MethodDescriptor, rule *annotations.HttpRule) (route, error) {
	r := route{full: "/" + string(m.Parent().FullName()) + "/" + string(m.Name())}
	switch p := rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		r.verb, r.template = http.MethodGet, p.Get
	case *annotations.HttpRule_Post:
		r.verb, r.template = http.MethodPost, p.Post
	case *annotations.HttpRule_Put:
		r.verb, r.template = http.MethodPut, p.Put
	case *annotations.HttpRule_Patch:
		r.verb, r.template = http.MethodPatch, p.Patch
	case *annotations.HttpRule_Delete:
		r.verb, r.template = http.MethodDelete, p.Delete
	default:
		return r, errors.New("rest: " + r.full + " has an unknown kind of HTTP rule")
	}
	if m.IsStreamingServer() || m.IsStreamingClient() || len(rule.GetAdditionalBindings()) > 0 || rule.GetBody() != "" && rule.GetBody() != "*" {
		return r, errors.New("rest: " + r.full + " has an HTTP rule that this door does not serve")
	}
	r.body = rule.GetBody() == "*"
	fields := m.Input().Fields()
	for i := range fields.Len() {
		name := string(fields.Get(i).Name())
		if r.body && fields.Get(i).Message() != nil {
			return r, errors.New("rest: " + name + " of " + r.full + " is a message, and the names inside it would not be checked")
		}
		if !r.body && !strings.Contains(r.template, "{"+name+"}") {
			r.query = append(r.query, name)
		}
	}
	return r, nil
}
